// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,4 timeout=60
// Steering: whatever clients send, all ranks are given the same events at the same steps.
#include "infer/steer/control.h"

#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/rng.h"
#include "core/base/signal.h"
#include "core/comm/watch.h"
#include "tests/ts_test.h"

static const ts_control_video video = {.frames = 17, .time_factor = 4};

static ts_comm *world;
static bool is_root;
static char folder[] = "/tmp/test_control_XXXXXX", path[64];

// ---- a client, on rank 0

static int join(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, path);
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof address) == 0 ? fd : -1;
}

static void tell(int fd, const char *text) {
    CHECK(send(fd, text, strlen(text), MSG_NOSIGNAL) == (ssize_t)strlen(text));
}

// What has come for a client, all of it.
static const char *heard(int fd) {
    static char text[1 << 18];
    const ssize_t got = recv(fd, text, sizeof text - 1, MSG_DONTWAIT);
    text[got > 0 ? got : 0] = '\0';
    return text;
}

static void check_heard(int fd, const char *wanted) {
    const char *got = heard(fd);
    if (!strstr(got, wanted)) {
        fprintf(stderr, "wanted %s in: %s\n", wanted, got);
        ts_test_failures++;
    }
}

// ---- the job

static ts_control *open_control(void) {
    ts_control *control = NULL;
    CHECK_OK(ts_control_open(&control, world, path, &video));
    return control;
}

static uint64_t mix(uint64_t sum, const ts_control_event *e) {
    sum = sum * 1099511628211u + (uint64_t)e->kind;
    sum = sum * 1099511628211u + (uint64_t)e->first;
    for (const char *c = e->text; *c; c++) {
        sum = sum * 1099511628211u + (unsigned char)*c;
    }
    return sum;
}

static bool alike(uint64_t sum) {
    int64_t least = (int64_t)(sum >> 1), most = least;
    CHECK_OK(ts_all_reduce(world, &least, 1, TS_I64, TS_MIN));
    CHECK_OK(ts_all_reduce(world, &most, 1, TS_I64, TS_MAX));
    return least == most;
}

// What a job does before a step; returns how many events there were.
static int obey(ts_control *control, int64_t step, uint64_t *sum) {
    const ts_control_event *event;
    int count, all = 0;
    do {
        CHECK_OK(ts_control_poll(control, step, &event, &count));
        for (int i = 0; i < count; i++) {
            *sum = mix(*sum, &event[i]);
            const bool refused = event[i].kind == TS_CONTROL_PREVIEW;
            ts_control_answer(control, i, refused ? TS_FAIL(TS_EINPUT, "no preview here") : TS_OK);
        }
        all += count;
    } while (count);
    return all;
}

// ---- receipts

static void exchange(ts_control *control, int fd, int64_t step, const char *message, const char *wanted) {
    uint64_t sum = 0;
    if (is_root) {
        tell(fd, message);
    }
    obey(control, step, &sum);
    CHECK(alike(sum));
    if (is_root) {
        check_heard(fd, wanted);
    }
}

static void test_receipts(void) {
    ts_control *control = open_control();
    const int fd = is_root ? join() : -1;
    exchange(control, fd, 0, "{\"prompt\": \"a blue circle\", \"from_frame\": 9}\n",
             "{\"event\": \"prompt\", \"step\": 0, \"frames\": [9, 17]}\n");
    exchange(control, fd, 1, "{\"prompt\":\"caf\\u00e9\",\"from_frame\":10,\"id\":7}\n",
             "{\"event\": \"prompt\", \"step\": 1, \"frames\": [9, 17], \"id\": 7}\n");
    exchange(control, fd, 2, "{\"prompt\":\"x\",\"from_frame\":16}\n", "\"frames\": [13, 17]");
    exchange(control, fd, 3, "{\"prompt\":\"x\"}\n", "\"frames\": [0, 17]");
    exchange(control, fd, 4, "{\"seed-branch\":\"a\"}\n",
             "{\"event\": \"seed-branch\", \"step\": 4, \"frames\": []}\n");
    exchange(control, fd, 5, "{\"preview\":\"a.png\"}\n", "{\"error\": \"no preview here\"}\n");
    exchange(control, fd, 6, "{\"pause\":true}\n{\"resume\":true,\"id\":\"r\"}\n",
             "{\"event\": \"pause\", \"step\": 6, \"frames\": []}\n"
             "{\"event\": \"resume\", \"step\": 6, \"frames\": [], \"id\": \"r\"}\n");
    static const struct {
        const char *message, *wanted;
    } wrong[] = {
        {"{\"prompt\"\n", "not valid JSON"},
        {"[1,2]\n", "must be a JSON object"},
        {"{}\n", "asks for 0 things"},
        {"{\"pause\":true,\"cancel\":true}\n", "asks for 2 things"},
        {"{\"prompt\":7}\n", "must be a string"},
        {"{\"prompt\":\" \",\"id\":3}\n", "\"id\": 3"},
        {"{\"prompt\":\"x\",\"from_frame\":17}\n", "must be 0 to 16"},
        {"{\"prompt\":\"x\",\"from_frame\":-1}\n", "must be 0 to 16"},
        {"{\"prompt\":\"x\",\"from_frame\":1e99}\n", "whole number"},
        {"{\"pause\":true,\"from_frame\":1}\n", "goes with"},
        {"{\"cancel\":false}\n", "can only be true"},
        {"{\"cancle\":true}\n", "do you mean \\\"cancel\\\"?"},
        {"{\"preview\":\"a.jpg\"}\n", ".png"},
        {"{\"preview\":\"/tmp/a.png\"}\n", "without a folder"},
        {"{\"preview\":\"../a.png\"}\n", "without a folder"},
        {"{\"seed-branch\":\"store/a\"}\n", "without a folder"},
        {"{\"seed-branch\":\"..\"}\n", "without a folder"},
        {"{\"seed-branch\":\"\"}\n", "without a folder"},
        {"{\"prompt\":\"\xff\xfe\"}\n", "error"},
        {"\x01\x02\x03\n", "error"},
        {"{\"prompt\":\"a\\u0000b\"}\n", "error"},
        {"{\"pause\":true,\"pause\":true}\n", "duplicate"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        exchange(control, fd, 7 + (int64_t)i, wrong[i].message, wrong[i].wanted);
    }
    if (is_root) {
        char message[1200];
        memset(message, 'x', sizeof message);
        memcpy(message, "{\"pause\":true,\"id\":\"", 20);
        memcpy(message + sizeof message - 4, "\"}\n", 4);
        tell(fd, message);
    }
    exchange(control, fd, 97, "", "at most 1000 are given back");
    exchange(control, fd, 98, "{\"cancel\":true}\n{\"pause\":true}\n", "too late");
    if (is_root) {
        tell(fd, "{\"pause\":true}\n");
    }
    ts_control_close(&control);
    if (is_root) {
        check_heard(fd, "too late");
        close(fd);
        CHECK(!ts_path_exists(path));
    }
}

// ---- lines in pieces, long ones, clients that go or do not listen

static void test_lines(void) {
    static char huge[3 * TS_CONTROL_LINE_BYTES];
    ts_control *control = open_control();
    uint64_t sum = 0;
    int fd = is_root ? join() : -1;
    exchange(control, fd, 0, "{\"pro", "");
    exchange(control, fd, 1, "mpt\":\"x\"}\n{\"seed-br", "\"step\": 1");
    exchange(control, fd, 2, "anch\":\"b\"}\n", "\"step\": 2");
    if (is_root) {
        memset(huge, 'x', sizeof huge);
        CHECK(send(fd, huge, sizeof huge, MSG_NOSIGNAL | MSG_DONTWAIT) > TS_CONTROL_LINE_BYTES);
    }
    for (int step = 3; step < 8; step++) {
        obey(control, step, &sum);
    }
    CHECK(sum == 0);
    exchange(control, fd, 8, "\n{\"prompt\":\"x\"}\n", "\"step\": 8");
    if (is_root) {
        tell(fd, "{\"prompt\":\"said, then gone\"}\n{\"prompt\":\"and without an end\"}");
        close(fd);
        fd = join();
        tell(fd, "{\"pause\":tr");  // gone in the middle
        close(fd);
    }
    CHECK(obey(control, 9, &sum) == 2);
    CHECK(alike(sum));
    ts_control_close(&control);
}

// More than have a place are all heard before one step.
static void test_crowd(void) {
    enum { MANY = 60 };
    ts_control *control = open_control();
    int fd[MANY];
    uint64_t sum = 0;
    for (int i = 0; is_root && i < MANY; i++) {
        fd[i] = join();
        tell(fd[i], "{\"resume\":true}\n");
    }
    CHECK(obey(control, 0, &sum) == 0);
    for (int i = 0; is_root && i < MANY; i++) {
        check_heard(fd[i], "\"step\": 0");
        close(fd[i]);
    }
    ts_control_close(&control);
}

// The place of who was silent longest is another's; nobody loses the receipt that he waits for.
static void test_oldest(void) {
    ts_control *control = open_control();
    int fd[TS_CONTROL_CLIENTS + 1];
    uint64_t sum = 0;
    for (int i = 0; is_root && i < TS_CONTROL_CLIENTS + 1; i++) {
        fd[i] = join();
        tell(fd[i], "{\"prompt\":\"of one\"}\n");
    }
    CHECK(obey(control, 0, &sum) == TS_CONTROL_CLIENTS);
    if (is_root) {
        check_heard(fd[0], "\"step\": 0");
        CHECK(*heard(fd[TS_CONTROL_CLIENTS]) == '\0');
        tell(fd[0], "{\"prompt\":\"heard of again\"}\n");
    }
    CHECK(obey(control, 1, &sum) == 2);
    if (is_root) {
        check_heard(fd[TS_CONTROL_CLIENTS], "\"step\": 1");
        check_heard(fd[0], "\"step\": 1");
        check_heard(fd[1], "cut off");
        check_heard(fd[2], "\"step\": 0");
    }
    for (int i = 0; is_root && i < TS_CONTROL_CLIENTS + 1; i++) {
        close(fd[i]);
    }
    CHECK(alike(sum));
    ts_control_close(&control);
}

// Clients that stay for ever without a word, have shut one way and read nothing, or send without end.
static void test_full_table(void) {
    enum { ROUNDS = 3, MANY = ROUNDS * TS_CONTROL_CLIENTS };
    ts_control *control = open_control();
    int fd[MANY];
    uint64_t sum = 0;
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; is_root && i < TS_CONTROL_CLIENTS; i++) {
            int *one = &fd[round * TS_CONTROL_CLIENTS + i];
            *one = join();
            for (int k = 0; round == 1 && k < 3000; k++) {
                (void)!send(*one, "[]\n", 3, MSG_NOSIGNAL | MSG_DONTWAIT);
            }
            if (round == 1) {
                CHECK(shutdown(*one, SHUT_WR) == 0);
            }
            if (round == 2) {
                tell(*one, "{\"half\"");
            }
        }
        for (int step = 0; step < 40; step++) {
            CHECK(obey(control, 100 * round + step, &sum) == 0);
        }
        const int late = is_root ? join() : -1;
        exchange(control, late, 100 * round + 50, "{\"preview\":\"a.png\"}\n", "no preview here");
        close(late);
    }
    for (int i = 0; is_root && i < MANY; i++) {
        close(fd[i]);
    }
    ts_control_close(&control);
}

static void test_flood(void) {
    ts_control *control = open_control();
    int flood = -1, other = -1;
    uint64_t sum = 0;
    if (is_root) {
        static const char line[] = "{\"prompt\":\"many at once\"}\n";
        static char lines[1000 * sizeof line];
        for (int i = 0; i < 1000; i++) {
            strcpy(lines + (size_t)i * (sizeof line - 1), line);
        }
        flood = join();
        tell(flood, lines);
        other = join();
        tell(other, "{\"prompt\":\"one\"}\n");
    }
    int64_t step = 1, got = obey(control, 0, &sum);
    if (is_root) {
        check_heard(other, "\"step\": 0");  // it did not wait for the thousand
    }
    for (int events = 1; events; step++) {
        events = obey(control, step, &sum);
        CHECK(events <= 1000 && step < 20);
        got += events;
    }
    CHECK(got == 1001 && step > 3);
    CHECK(alike(sum));
    close(flood);
    close(other);
    ts_control_close(&control);
}

// Many that connect and go again, or stay and say nothing, hold nobody up.
static void test_passers_by(void) {
    enum { MANY = 50 };
    ts_control *control = open_control();
    int fd[MANY];
    for (int i = 0; is_root && i < MANY; i++) {
        close(join());
        fd[i] = join();
    }
    const int one = is_root ? join() : -1;
    exchange(control, one, 0, "{\"resume\":true}\n", "\"step\": 0");
    for (int i = 0; is_root && i < MANY; i++) {
        close(fd[i]);
    }
    close(one);
    ts_control_close(&control);
}

// ---- one hundred random messages

static uint32_t draw(uint32_t n) {
    static uint64_t drawn;
    return (uint32_t)ts_rng_below(11, TS_RNG_SAMPLE, drawn++, 0, n);
}

static size_t random_message(char *out, size_t room) {
    static const char *const good[] = {"{\"prompt\":\"a red circle\",\"from_frame\":5}\n", "{\"preview\":\"p.png\"}\n",
                                       "{\"seed-branch\":\"b\",\"id\":[1]}\n", "{\"pause\":true}\n{\"resume\":true}\n",
                                       "{\"resume\":true}\n"};
    const uint32_t kind = draw(8);
    if (kind < 3) {
        return (size_t)snprintf(out, room, "%s", good[draw(5)]);
    }
    size_t bytes = kind < 5 ? 1 + draw(300) : kind == 5 ? room : 0;
    if (kind >= 6) {  // one with a byte or more that is wrong, or half of one
        bytes = (size_t)snprintf(out, room, "%s", good[draw(3)]);
        out[draw((uint32_t)bytes)] = (char)draw(256);
        return kind == 6 ? bytes : 1 + draw((uint32_t)bytes);
    }
    for (size_t i = 0; i < bytes; i++) {
        out[i] = kind == 3 ? (char)draw(256) : "{}[]\":,\\utrefalsn01-e. \n"[draw(24)];
    }
    return bytes;
}

static void test_random(void) {
    enum { MESSAGES = 100, STEPS = 40 };
    static char text[100 * 1000];
    ts_control *control = open_control();
    uint64_t sum = 0;
    int sent = 0, fd = -1;
    for (int64_t step = 0; step < STEPS; step++) {
        const int until = (int)((step + 1) * MESSAGES / STEPS);
        for (; is_root && sent < until; sent++) {
            if (fd < 0 || draw(8) == 0) {
                close(fd);
                fd = join();
                CHECK(fd >= 0);
            }
            const size_t bytes = random_message(text, sizeof text);
            (void)!send(fd, text, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (draw(4) == 0) {
                (void)heard(fd);
            }
        }
        if (is_root) {  // whoever was made to pause goes on
            const int other = join();
            tell(other, "{\"resume\":true}\n");
            close(other);
        }
        obey(control, step, &sum);
        CHECK(alike(sum));
    }
    close(fd);
    ts_control_close(&control);
    CHECK(sum != 0 || !is_root);
}

// ---- pausing

typedef struct later {
    int milliseconds, fd, signal;
    const char *text;
} later;

static void *act_later(void *user) {
    const later *l = user;
    usleep((useconds_t)l->milliseconds * 1000);
    if (l->signal) {
        kill(getpid(), l->signal);
    } else {
        tell(l->fd, l->text);
    }
    return NULL;
}

static void test_pause(void) {
    ts_control *control = open_control();
    const ts_control_event *event;
    int count;
    uint64_t sum = 0;
    pthread_t thread[3];
    const int fd = is_root ? join() : -1;
    const later acts[] = {{100, fd, 0, "{\"prompt\":\"while it waits\"}\n"}, {1500, fd, 0, "{\"resume\":true}\n"}};
    const double start = ts_clock_seconds();
    if (is_root) {
        tell(fd, "{\"pause\":true}\n");
        pthread_create(&thread[0], NULL, act_later, (void *)&acts[0]);
        pthread_create(&thread[1], NULL, act_later, (void *)&acts[1]);
    }
    CHECK_OK(ts_control_poll(control, 3, &event, &count));
    CHECK(count == 1 && event[0].kind == TS_CONTROL_PROMPT && ts_clock_seconds() - start < 1.3);
    ts_control_answer(control, 0, TS_OK);
    CHECK_OK(ts_control_poll(control, 3, &event, &count));
    CHECK(count == 0 && ts_clock_seconds() - start > 1.4);
    CHECK(alike(mix(sum, &(ts_control_event){.text = ""})));
    if (is_root) {
        pthread_join(thread[0], NULL);
        pthread_join(thread[1], NULL);
        check_heard(fd, "\"event\": \"prompt\", \"step\": 3");
        tell(fd, "{\"pause\":true}\n");
    }
    // A signal to the last rank alone ends the pause on all of them.
    CHECK_OK(ts_signal_catch());
    const later blow = {100, -1, SIGTERM, NULL};
    const bool is_last = ts_comm_rank(world) == ts_comm_size(world) - 1;
    if (is_last) {
        pthread_create(&thread[2], NULL, act_later, (void *)&blow);
    }
    CHECK_FAILS(ts_control_poll(control, 4, &event, &count), TS_ESTOPPED, "while paused before step 4");
    if (is_last) {
        pthread_join(thread[2], NULL);
    }
    ts_control_close(&control);
    ts_signal_release();
    if (is_root) {
        CHECK(!ts_path_exists(path));
        close(fd);
    }
}

// ---- the socket's file

static void check_refused(const char *where, const char *text) {
    ts_control *control = NULL;
    CHECK_FAILS(ts_control_open(&control, world, where, &video), TS_EINPUT, text);
    CHECK(control == NULL);
}

static void test_path(void) {
    char other[TS_PATH_BYTES];
    memset(other, 'x', 150);
    other[150] = '\0';
    check_refused(other, "a socket's path has 1 to 107 bytes");
    check_refused("", "a socket's path");
    snprintf(other, sizeof other, "%s/none/socket", folder);
    check_refused(other, "cannot make a socket");
    check_refused(folder, "exists and is no socket");
    ts_control *control = open_control();
    check_refused(path, "another job listens");
    if (is_root) {
        struct stat about;
        CHECK(stat(path, &about) == 0 && (about.st_mode & 0777) == 0600);
    }
    ts_control_close(&control);
    if (is_root) {  // a stale one
        const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        strcpy(address.sun_path, path);
        CHECK(bind(fd, (const struct sockaddr *)&address, sizeof address) == 0);
        close(fd);
        CHECK(ts_path_exists(path));
    }
    control = open_control();
    // A first signal removes it at once, whatever the program does then.
    CHECK_OK(ts_signal_catch());
    raise(SIGTERM);
    CHECK(!is_root || !ts_path_exists(path));
    ts_signal_release();
    ts_control_close(&control);
}

int main(int argc, char **argv) {
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    CHECK_OK(ts_watch_open(world, &(ts_watch_params){.timeout = 1}));  // a pause is no deadlock
    is_root = ts_comm_rank(world) == 0;
    if (is_root) {
        CHECK(mkdtemp(folder));
    }
    CHECK_OK(ts_broadcast(world, folder, sizeof folder, 0));
    snprintf(path, sizeof path, "%s/socket", folder);
    test_receipts();
    test_lines();
    test_crowd();
    test_oldest();
    test_full_table();
    test_flood();
    test_passers_by();
    test_random();
    test_pause();
    test_path();
    CHECK_OK(ts_barrier(world));
    if (is_root) {
        CHECK_OK(ts_folder_remove(folder));
    }
    ts_world_close(&world, TS_OK);
    return ts_test_end();
}
