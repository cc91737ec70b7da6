// SPDX-License-Identifier: Apache-2.0
// Streams put off all work until something waits for it, and then do it in an order that is as unhelpful as events
// allow. Nothing runs beside the program: what a GPU would do meanwhile is done in the call that waits.
#include <chrono>
#include <cstring>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "tests/shim/private.h"

namespace shim {

std::recursive_mutex lock;

struct work {
    const char *name;
    std::function<void()> run;
    cudaStream_t waits_for;  // not before this stream has done `until` pieces of work
    uint64_t until;
};

struct capture;

}  // namespace shim

using namespace shim;

struct CUstream_st {
    std::deque<work> queue;
    uint64_t enqueued, done;
    std::shared_ptr<capture> captured;
};

struct CUevent_st {
    cudaStream_t stream;
    uint64_t at;  // of the stream's pieces of work
    std::shared_ptr<capture> captured;
    std::vector<std::pair<cudaStream_t, size_t>> seen;  // captured work before it, by stream
    std::shared_ptr<double> time;                       // in milliseconds, once the event has come
    bool is_recorded;
};

struct CUgraph_st {
    std::vector<work> works;
};

struct CUgraphExec_st {
    std::shared_ptr<std::vector<work>> works;
};

namespace shim {

struct capture {
    cudaStream_t origin;
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    bool spoiled;
    std::vector<work> works;
    // For each stream that takes part: how many works it was given, and what of the others comes before its next.
    struct part {
        cudaStream_t stream;
        size_t count;
        std::vector<std::pair<cudaStream_t, size_t>> seen;
    };
    std::vector<part> parts;

    part &of(cudaStream_t stream) {
        for (part &p : parts) {
            if (p.stream == stream) {
                return p;
            }
        }
        parts.push_back({stream, 0, {}});
        return parts.back();
    }
};

// ---- doing the work

static std::vector<cudaStream_t> &streams() {
    // The first is the default stream. It lasts as long as the program, whose end may still wait for some.
    static std::vector<cudaStream_t> &all = *new std::vector<cudaStream_t>{new CUstream_st{}};
    return all;
}

static cudaStream_t of(cudaStream_t stream) {
    return stream ? stream : streams()[0];
}

static bool can_step(cudaStream_t s) {
    return !s->queue.empty() &&
           (!s->queue.front().waits_for || s->queue.front().waits_for->done >= s->queue.front().until);
}

static void step(cudaStream_t s) {
    work w = std::move(s->queue.front());
    s->queue.pop_front();
    if (w.run) {
        running = w.name;
        w.run();
        running = w.name;
        check_ends();
        running = nullptr;
    }
    s->done++;
}

// The stream whose work must be done before `s` can go on: itself, or what it waits for.
static cudaStream_t needed_by(cudaStream_t s) {
    while (!can_step(s)) {
        s = s->queue.front().waits_for;
    }
    return s;
}

// Whose turn it is, of those that may go: the others as late as can be, or as early, or anybody.
static cudaStream_t choose(cudaStream_t wanted, order how, dice &d) {
    if (how == order::forward) {
        return needed_by(wanted);
    }
    std::vector<cudaStream_t> ready;
    for (cudaStream_t s : streams()) {
        if (can_step(s) && (s != wanted || how == order::random)) {
            ready.push_back(s);
        }
    }
    if (ready.empty()) {
        return needed_by(wanted);
    }
    return ready[how == order::random ? d.below((unsigned)ready.size()) : 0];
}

static void run_until(cudaStream_t s, uint64_t count) {
    if (s->done >= count) {
        return;
    }
    static uint64_t waits;
    dice d(waits);
    const order chosen = chosen_order();
    const order how = chosen == order::alternate ? (waits % 2 ? order::reverse : order::forward) : chosen;
    waits++;
    open_memory();
    while (s->done < count) {
        step(choose(s, how, d));
    }
    close_memory();
}

void finish_all() {
    for (cudaStream_t s : streams()) {
        run_until(s, s->enqueued);
    }
}

static void append(cudaStream_t s, work w) {
    if (s->captured) {
        s->captured->of(s).count++;
        s->captured->works.push_back(std::move(w));
    } else {
        s->queue.push_back(std::move(w));
        s->enqueued++;
    }
}

void put(cudaStream_t stream, const char *name, std::function<void()> run) {
    append(of(stream), {name, std::move(run), nullptr, 0});
}

// ---- what captures refuse

static thread_local cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;

bool capturing(cudaStream_t stream) {
    return of(stream)->captured != nullptr;
}

bool any_capturing() {
    if (mode == cudaStreamCaptureModeRelaxed) {
        return false;
    }
    for (cudaStream_t s : streams()) {
        if (s->captured && (s->captured->mode == cudaStreamCaptureModeGlobal ||
                            (s->captured->mode == cudaStreamCaptureModeThreadLocal &&
                             s->captured->thread == std::this_thread::get_id()))) {
            return true;
        }
    }
    return false;
}

void spoil_capture() {
    for (cudaStream_t s : streams()) {
        if (s->captured) {
            s->captured->spoiled = true;
        }
    }
}

// Waiting for a stream that is captured is an error, and ends the capture's use.
static bool refuses_wait(cudaStream_t s) {
    if (s->captured) {
        s->captured->spoiled = true;
        return true;
    }
    return false;
}

}  // namespace shim

#define HOLD const std::lock_guard<std::recursive_mutex> hold(lock)

// ---- streams

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    HOLD;
    *stream = new CUstream_st{};
    streams().push_back(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int) {
    return cudaStreamCreateWithFlags(stream, flags);
}

// The object stays: events may still speak of it.
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    return stream ? cudaStreamSynchronize(stream) : told(cudaErrorInvalidResourceHandle);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    HOLD;
    cudaStream_t const s = of(stream);
    if (refuses_wait(s)) {
        return told(cudaErrorStreamCaptureUnsupported);
    }
    run_until(s, s->enqueued);
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
    HOLD;
    for (cudaStream_t s : streams()) {
        if (refuses_wait(s)) {
            return told(cudaErrorStreamCaptureUnsupported);
        }
    }
    finish_all();
    return cudaSuccess;
}

// Whoever asks again and again comes to the end at last.
static cudaError_t ask(cudaStream_t s, uint64_t count) {
    if (s->done >= count) {
        return cudaSuccess;
    }
    open_memory();
    step(needed_by(s));
    close_memory();
    return cudaErrorNotReady;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
    HOLD;
    cudaStream_t const s = of(stream);
    return refuses_wait(s) ? told(cudaErrorStreamCaptureUnsupported) : ask(s, s->enqueued);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *argument) {
    HOLD;
    put(stream, "cudaLaunchHostFunc", [=] { function(argument); });
    return cudaSuccess;
}

cudaError_t ts_shim_enqueue(cudaStream_t stream, const char *name, void (*run)(void *), void *argument,
                            void (*release)(void *)) {
    HOLD;
    const std::shared_ptr<void> owned(
        argument, release ? release : [](void *) {});
    put(stream, name, [=] { run(owned.get()); });
    return cudaSuccess;
}

// ---- events

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    *event = new CUevent_st{};
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) {
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    HOLD;
    if (!event) {
        return told(cudaErrorInvalidResourceHandle);
    }
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    HOLD;
    cudaStream_t const s = of(stream);
    if (!event) {
        return told(cudaErrorInvalidResourceHandle);
    }
    event->is_recorded = true;
    event->stream = s;
    event->captured = s->captured;
    if (s->captured) {
        capture::part &p = s->captured->of(s);
        event->seen = p.seen;
        event->seen.push_back({s, p.count});
        return cudaSuccess;
    }
    event->time = std::make_shared<double>();
    put(stream, "cudaEventRecord", [time = event->time] {
        *time = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
    });
    event->at = s->enqueued;
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    HOLD;
    cudaStream_t const s = of(stream);
    if (!event) {
        return told(cudaErrorInvalidResourceHandle);
    }
    if (!event->is_recorded) {
        return cudaSuccess;
    }
    if (event->captured) {
        if (s->captured && s->captured != event->captured) {
            return told(cudaErrorStreamCaptureImplicit);
        }
        s->captured = event->captured;
        capture::part &p = s->captured->of(s);
        p.seen.insert(p.seen.end(), event->seen.begin(), event->seen.end());
        return cudaSuccess;
    }
    if (s->captured) {
        s->captured->spoiled = true;  // a dependency on work outside of the graph
        return told(cudaErrorStreamCaptureUnsupported);
    }
    append(s, {"cudaStreamWaitEvent", nullptr, event->stream, event->at});
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    HOLD;
    if (!event) {
        return told(cudaErrorInvalidResourceHandle);
    }
    if (event->captured) {
        event->captured->spoiled = true;
        return told(cudaErrorStreamCaptureUnsupported);
    }
    if (event->is_recorded) {
        run_until(event->stream, event->at);
    }
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    HOLD;
    if (!event) {
        return told(cudaErrorInvalidResourceHandle);
    }
    if (event->captured) {
        event->captured->spoiled = true;
        return told(cudaErrorStreamCaptureUnsupported);
    }
    return event->is_recorded ? ask(event->stream, event->at) : cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    HOLD;
    if (!start || !end || !start->time || !end->time) {
        return told(cudaErrorInvalidResourceHandle);
    }
    if (start->stream->done < start->at || end->stream->done < end->at) {
        return told(cudaErrorNotReady);
    }
    *milliseconds = (float)(*end->time - *start->time);
    return cudaSuccess;
}

// ---- graphs

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode how) {
    HOLD;
    if (!stream || stream->captured) {
        return told(stream ? cudaErrorInvalidValue : cudaErrorStreamCaptureUnsupported);
    }
    stream->captured = std::make_shared<capture>();
    stream->captured->origin = stream;
    stream->captured->mode = how;
    stream->captured->thread = std::this_thread::get_id();
    return cudaSuccess;
}

// Whether all that other streams were given comes before the origin's last: they were joined.
static bool joined(capture &c) {
    const capture::part origin = c.of(c.origin);
    for (const capture::part &p : c.parts) {
        bool seen = p.stream == c.origin || p.count == 0;
        for (const auto &[stream, count] : origin.seen) {
            seen = seen || (stream == p.stream && count >= p.count);
        }
        if (!seen) {
            return false;
        }
    }
    return true;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    HOLD;
    *graph = nullptr;
    if (!stream || !stream->captured) {
        return told(cudaErrorInvalidValue);
    }
    const std::shared_ptr<capture> c = stream->captured;
    if (c->origin != stream) {
        return told(cudaErrorStreamCaptureUnmatched);
    }
    for (cudaStream_t s : streams()) {
        if (s->captured == c) {
            s->captured = nullptr;
        }
    }
    if (c->spoiled) {
        return told(cudaErrorStreamCaptureInvalidated);
    }
    if (!joined(*c)) {
        return told(cudaErrorStreamCaptureUnjoined);
    }
    *graph = new CUgraph_st{std::move(c->works)};
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    HOLD;
    const capture *const c = of(stream)->captured.get();
    *status = !c           ? cudaStreamCaptureStatusNone
              : c->spoiled ? cudaStreamCaptureStatusInvalidated
                           : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *other) {
    HOLD;
    std::swap(mode, *other);
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, void **nodes, size_t *count) {
    if (!graph || !count || nodes) {
        return told(cudaErrorInvalidValue);
    }
    *count = graph->works.size();
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long) {
    HOLD;
    if (!graph) {
        return told(cudaErrorInvalidValue);
    }
    *out = new CUgraphExec_st{std::make_shared<std::vector<work>>(graph->works)};
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    HOLD;
    if (!graph) {
        return told(cudaErrorInvalidValue);
    }
    put(stream, "a graph", [works = graph->works] {
        for (const work &w : *works) {
            running = w.name;
            w.run();
            running = w.name;
            check_ends();
        }
    });
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    HOLD;
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    HOLD;
    delete graph;
    return cudaSuccess;
}
