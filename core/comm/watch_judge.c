// SPDX-License-Identifier: Apache-2.0
// The judge: reads the latest pulse of every rank and says which rank is at fault, if any. No sockets, no clock.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/comm/watch_private.h"

// ---- words

static const char *kind_name(int kind) {
    return kind == TS_WATCH_AGREE                    ? "agreement"
           : kind == TS_WATCH_END                    ? "end of the program"
           : kind >= 0 && kind < TS_COLLECTIVE_COUNT ? ts_collective_name((ts_collective)kind)
                                                     : "call";
}

static const char *bytes_text(int64_t bytes, char *out, size_t room) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    int unit = 0;
    while (value >= 1024 && unit < 4) {
        value /= 1024;
        unit++;
    }
    snprintf(out, room, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return out;
}

// "all-gather #2031 on the tensor axis (1.2 MiB)"
static const char *call_text(const ts_watch_call *call, uint64_t sequence, const char *axis, char *out, size_t room) {
    char size[32], data[48] = "";
    if (call->bytes > 0) {
        snprintf(data, sizeof data, " (%s)", bytes_text(call->bytes, size, sizeof size));
    }
    snprintf(out, room, "%s #%llu on the %s axis%s", kind_name(call->kind), (unsigned long long)sequence, axis, data);
    return out;
}

// "in all-gather #2031 on the tensor axis (1.2 MiB)"
static const char *inside_text(const ts_watch_call *call, uint64_t sequence, const char *axis, char *out, size_t room) {
    char text[160];
    if (call->kind == TS_WATCH_END) {
        snprintf(out, room, "at the end of the program");
    } else {
        snprintf(out, room, "in %s", call_text(call, sequence, axis, text, sizeof text));
    }
    return out;
}

static const char *latest_text(const ts_watch_pulse *pulse, char *out, size_t room) {
    if (pulse->on_device) {
        char text[160];
        snprintf(out, room, "in its device's work up to %s",
                 call_text(&pulse->call, pulse->sequence, pulse->name, text, sizeof text));
        return out;
    }
    return inside_text(&pulse->call, pulse->sequence, pulse->name, out, room);
}

// "[rank 2/4 host-b] step 117: "
static const char *who_text(const ts_watch_peer *peer, int rank, int size, char *out, size_t room) {
    char step[32] = "";
    if (peer->pulse.step >= 0) {
        snprintf(step, sizeof step, " step %lld:", (long long)peer->pulse.step);
    }
    snprintf(out, room, "[rank %d/%d %s]%s", rank, size, peer->host, step);
    return out;
}

void ts_watch_describe_silence(const ts_watch_peer *peer, int rank, int size, char *text, size_t bytes) {
    char who[160], call[192], seen[256], what[64];
    const ts_watch_pulse *const pulse = &peer->pulse;
    if (pulse->inside >= 0) {
        latest_text(pulse, seen, sizeof seen);
    } else {
        call_text(&pulse->call, pulse->sequence, pulse->name, call, sizeof call);
        snprintf(seen, sizeof seen, "%s%s%s", pulse->note[0] ? pulse->note : "computing", pulse->doing ? " after " : "",
                 pulse->doing ? call : "");
    }
    snprintf(what, sizeof what, peer->gone ? "its process is gone" : "silent for %.0f s", peer->silent);
    snprintf(text, bytes, "%s %s; last seen %s", who_text(peer, rank, size, who, sizeof who), what, seen);
}

void ts_watch_describe_error(const ts_watch_peer *peer, int rank, int size, const char *what, char *text,
                             size_t bytes) {
    char who[160];
    snprintf(text, bytes, "%s %s", who_text(peer, rank, size, who, sizeof who), what);
}

// ---- silence and loss

static bool is_lost(const ts_watch_judge *judge, int rank, double timeout) {
    const ts_watch_peer *const peer = &judge->peers[rank];
    return peer->present && peer->silent > (peer->gone ? TS_WATCH_LOSS_SECONDS : timeout);
}

// When a host freezes, all its ranks fall silent together: the line names the first and counts the rest.
static bool find_silence(const ts_watch_judge *judge, char *text, size_t bytes) {
    int first = 0, others = 0;
    while (first < judge->size && !is_lost(judge, first, judge->timeout)) {
        first++;
    }
    if (first == judge->size) {
        return false;
    }
    for (int rank = 0; rank < judge->size; rank++) {
        others += rank != first && is_lost(judge, rank, judge->timeout / 2);
    }
    ts_watch_describe_silence(&judge->peers[first], first, judge->size, text, bytes);
    if (others) {
        const size_t used = strlen(text);
        snprintf(text + used, bytes - used, "; %d other rank%s silent too", others, others > 1 ? "s are" : " is");
    }
    return true;
}

// ---- the index of communicators

static int compare_entries(const void *a, const void *b) {
    const ts_watch_entry *const x = a, *const y = b;
    if (x->line->id != y->line->id) {
        return x->line->id < y->line->id ? -1 : 1;
    }
    return x->rank - y->rank;
}

// Fills judge->entries, members of a communicator side by side in the order of their ranks; returns their number.
static int make_index(const ts_watch_judge *judge) {
    int count = 0;
    for (int rank = 0; rank < judge->size; rank++) {
        const ts_watch_peer *const peer = &judge->peers[rank];
        for (int i = 0; peer->present && i < peer->pulse.lines; i++) {
            judge->entries[count++] = (ts_watch_entry){&peer->pulse.line[i], rank};
        }
    }
    qsort(judge->entries, (size_t)count, sizeof *judge->entries, compare_entries);
    return count;
}

// The members of one communicator within the index.
typedef struct group {
    const ts_watch_entry *member;
    int count;
} group;

static group next_group(const ts_watch_judge *judge, int at, int end) {
    group g = {&judge->entries[at], 0};
    while (at + g.count < end && judge->entries[at + g.count].line->id == g.member->line->id) {
        g.count++;
    }
    return g;
}

// ---- mismatch

// The hash of call `sequence` as this line knows it: among its recent calls, or one of its marks.
static bool hash_at(const ts_watch_line *line, uint64_t sequence, uint64_t *out) {
    if (sequence == 0 || sequence > line->sequence) {
        return false;
    }
    if (line->sequence - sequence < TS_WATCH_RECENT) {
        *out = line->recent[sequence % TS_WATCH_RECENT].hash;
        return true;
    }
    for (int i = 0; i < TS_WATCH_MARKS; i++) {
        const uint64_t every = (uint64_t)64 << 4 * i;
        if (line->sequence / every * every == sequence) {
            *out = line->mark[i];
            return true;
        }
    }
    return false;
}

static bool differ_at(const ts_watch_line *a, const ts_watch_line *b, uint64_t sequence) {
    uint64_t x, y;
    return hash_at(a, sequence, &x) && hash_at(b, sequence, &y) && x != y;
}

// The first call, as far back as both remember, in which two ranks differ; 0 when they agree.
static uint64_t first_difference(const ts_watch_line *a, const ts_watch_line *b) {
    const uint64_t shorter = a->sequence < b->sequence ? a->sequence : b->sequence;
    for (int i = TS_WATCH_MARKS - 1; i >= 0; i--) {
        const uint64_t every = (uint64_t)64 << 4 * i, mark = shorter / every * every;
        if (differ_at(a, b, mark)) {
            return mark;
        }
    }
    for (uint64_t back = TS_WATCH_RECENT; back-- > 0;) {
        if (back < shorter && differ_at(a, b, shorter - back)) {
            return shorter - back;
        }
    }
    return 0;
}

// How many members have `member`'s hash of call `sequence`.
static int count_votes(group g, const ts_watch_line *line, uint64_t sequence) {
    uint64_t own, other;
    int votes = 0;
    for (int i = 0; hash_at(line, sequence, &own) && i < g.count; i++) {
        votes += hash_at(g.member[i].line, sequence, &other) && other == own;
    }
    return votes;
}

static const ts_watch_call *call_at(const ts_watch_line *line, uint64_t sequence) {
    return line->sequence - sequence < TS_WATCH_RECENT ? &line->recent[sequence % TS_WATCH_RECENT] : NULL;
}

static void describe_mismatch(const ts_watch_judge *judge, ts_watch_entry wrong, ts_watch_entry right,
                              uint64_t sequence, char *text, size_t bytes) {
    char who[160], its[192], size[32], other[192];
    const ts_watch_peer *const peer = &judge->peers[wrong.rank], *const witness = &judge->peers[right.rank];
    const ts_watch_call *const a = call_at(wrong.line, sequence), *const b = call_at(right.line, sequence);
    who_text(peer, wrong.rank, judge->size, who, sizeof who);
    if (!a || !b) {
        snprintf(text, bytes, "%s its calls on the %s axis up to #%llu are not those of rank %d", who, wrong.line->name,
                 (unsigned long long)sequence, right.rank);
        return;
    }
    inside_text(a, sequence, wrong.line->name, its, sizeof its);
    if (a->kind != b->kind) {
        char call[176];
        snprintf(other, sizeof other, "is %s", inside_text(b, sequence, right.line->name, call, sizeof call));
    } else if (a->bytes != b->bytes) {
        snprintf(other, sizeof other, "has %s", bytes_text(b->bytes, size, sizeof size));
    } else if (a->dtype != b->dtype) {
        snprintf(other, sizeof other, "has %s in place of %s", ts_dtype_name((ts_dtype)b->dtype),
                 ts_dtype_name((ts_dtype)a->dtype));
    } else if (peer->pulse.step != witness->pulse.step) {
        snprintf(other, sizeof other, "is in step %lld", (long long)witness->pulse.step);
    } else {
        snprintf(other, sizeof other, "has another operation, root or split, or differed in an earlier call");
    }
    snprintf(text, bytes, "%s %s, where rank %d on %s %s", who, its, right.rank, witness->host, other);
}

// The rank at fault is in the smaller party; of two equal ones, in that without the lowest rank.
static bool judge_calls(const ts_watch_judge *judge, group g, char *text, size_t bytes) {
    const ts_watch_entry first = g.member[0];
    for (int i = 1; i < g.count; i++) {
        const ts_watch_entry other = g.member[i];
        const uint64_t sequence = first_difference(first.line, other.line);
        if (sequence) {
            const bool first_wrong = count_votes(g, first.line, sequence) < count_votes(g, other.line, sequence);
            describe_mismatch(judge, first_wrong ? first : other, first_wrong ? other : first, sequence, text, bytes);
            return true;
        }
    }
    return false;
}

static bool find_mismatch(const ts_watch_judge *judge, int entries, char *text, size_t bytes) {
    for (int at = 0; at < entries;) {
        const group g = next_group(judge, at, entries);
        if (judge_calls(judge, g, text, bytes)) {
            return true;
        }
        at += g.count;
    }
    return false;
}

// ---- deadlock
//
// A rank inside a call waits for the members that have not begun it, or for all of them when they have. It is stuck
// when it has waited for the time-out and so has everyone it waits for; while one of those is out of calls, or went in
// a moment ago, all is well.
//
// A rank that waits for its device has given it all calls it has made, on all its communicators, and waits for the
// members that have not begun one of them. When all have, the device computes, for as long as it likes.

// The call of a group that a stuck rank waits in; 0 when it waits elsewhere, which no rank is late for.
static uint64_t waits_in(const ts_watch_judge *judge, ts_watch_entry e) {
    const ts_watch_pulse *const pulse = &judge->peers[e.rank].pulse;
    if (!judge->stuck[e.rank]) {
        return 0;
    }
    return pulse->on_device ? e.line->sequence : pulse->doing == e.line->id ? pulse->sequence : 0;
}

// Whether a rank may be one of those that a group misses: it has given up its communicator along that axis.
static bool is_missing(const ts_watch_judge *judge, group g, int rank) {
    const ts_watch_pulse *const pulse = &judge->peers[rank].pulse;
    for (int i = 0; i < pulse->lines; i++) {
        if (!strcmp(pulse->line[i].name, g.member->line->name)) {
            return false;
        }
    }
    return judge->peers[rank].present && g.count < g.member->line->size;
}

// Frees the ranks of one group that wait for a free one; true when it did.
static bool free_group(const ts_watch_judge *judge, group g) {
    uint64_t lowest = UINT64_MAX, lowest_free = UINT64_MAX;
    for (int rank = 0; rank < judge->size && g.count < g.member->line->size; rank++) {
        lowest_free = is_missing(judge, g, rank) && !judge->stuck[rank] ? 0 : lowest_free;
    }
    for (int i = 0; i < g.count; i++) {
        const uint64_t sequence = g.member[i].line->sequence;
        lowest = sequence < lowest ? sequence : lowest;
        if (!judge->stuck[g.member[i].rank]) {
            lowest_free = sequence < lowest_free ? sequence : lowest_free;
        }
    }
    bool freed = false;
    for (int i = 0; i < g.count; i++) {
        const int rank = g.member[i].rank;
        const uint64_t in = waits_in(judge, g.member[i]);
        if (in && judge->peers[rank].pulse.on_device) {
            judge->held[rank] = judge->held[rank] || (lowest < in && lowest_free >= in);
        } else if (in && lowest_free != UINT64_MAX && (lowest_free < in || lowest >= in)) {
            judge->stuck[rank] = false;
            freed = true;
        }
    }
    return freed;
}

// Frees the ranks that wait for their device and that no group holds up; true when it did.
static bool free_computing(const ts_watch_judge *judge) {
    bool freed = false;
    for (int rank = 0; rank < judge->size; rank++) {
        if (judge->stuck[rank] && judge->peers[rank].pulse.on_device && !judge->held[rank]) {
            judge->stuck[rank] = false;
            freed = true;
        }
    }
    return freed;
}

// Inside a watched call for the time-out.
static bool waits_long(const ts_watch_peer *peer, double timeout) {
    bool watched = false;
    for (int i = 0; i < peer->pulse.lines; i++) {
        watched = watched || peer->pulse.line[i].id == peer->pulse.doing;
    }
    return peer->present && watched && peer->pulse.inside >= timeout;
}

// Leaves in judge->stuck who is; returns the lowest rank of them, or `size`.
static int find_stuck(const ts_watch_judge *judge, int entries) {
    for (int rank = 0; rank < judge->size; rank++) {
        judge->stuck[rank] = waits_long(&judge->peers[rank], judge->timeout);
    }
    for (bool again = true; again;) {
        again = false;
        memset(judge->held, 0, (size_t)judge->size * sizeof *judge->held);
        for (int at = 0; at < entries;) {
            const group g = next_group(judge, at, entries);
            again = free_group(judge, g) || again;
            at += g.count;
        }
        again = free_computing(judge) || again;
    }
    int first = 0;
    while (first < judge->size && !judge->stuck[first]) {
        first++;
    }
    return first;
}

// How many stuck ranks wait for `rank` to begin their call; the lowest of them in `waiting`.
static int count_waiting(const ts_watch_judge *judge, int entries, int rank, int *waiting) {
    int votes = 0;
    for (int at = 0; at < entries;) {
        const group g = next_group(judge, at, entries);
        uint64_t begun = is_missing(judge, g, rank) ? 0 : UINT64_MAX;
        for (int i = 0; i < g.count; i++) {
            begun = g.member[i].rank == rank ? g.member[i].line->sequence : begun;
        }
        for (int i = 0; i < g.count; i++) {
            const int other = g.member[i].rank;
            if (waits_in(judge, g.member[i]) > begun) {
                *waiting = votes++ && *waiting < other ? *waiting : other;
            }
        }
        at += g.count;
    }
    return votes;
}

// All ranks run one program, so that those in a call have made as many calls before it. One that has not, where most
// have, left a call out or made one too many: by how many ranks it is outvoted.
static int count_outvotes(const ts_watch_judge *judge, int rank) {
    const ts_watch_pulse *const own = &judge->peers[rank].pulse;
    int alike = 0, unlike = 0;
    for (int i = 0; i < judge->size && judge->stuck[rank]; i++) {
        const ts_watch_pulse *const other = &judge->peers[i].pulse;
        if (judge->peers[i].present && other->inside >= 0 && own->sequence == other->sequence &&
            !strcmp(own->name, other->name)) {
            alike += own->calls == other->calls;
            unlike += own->calls != other->calls;
        }
    }
    return unlike - alike;
}

// The rank that is outvoted, or else the one that most wait for, and the lowest of those; -1 when nobody is late.
static int find_culprit(const ts_watch_judge *judge, int entries, int *waiting) {
    int culprit = -1, most = 0;
    bool outvoted = false;
    for (int rank = 0; rank < judge->size; rank++) {
        int voter;
        const int votes = count_waiting(judge, entries, rank, &voter);
        const bool odd = count_outvotes(judge, rank) > 0;
        if (votes && (odd > outvoted || (odd == outvoted && votes > most))) {
            culprit = rank;
            most = votes;
            outvoted = odd;
            *waiting = voter;
        }
    }
    return culprit;
}

static bool find_deadlock(const ts_watch_judge *judge, int entries, char *text, size_t bytes) {
    const int first = find_stuck(judge, entries);
    if (first == judge->size) {
        return false;
    }
    char who[160], own[192], other[192];
    int waiting = first;
    const int missed = find_culprit(judge, entries, &waiting);
    const ts_watch_peer *const waits = &judge->peers[waiting];
    latest_text(&waits->pulse, other, sizeof other);
    if (missed < 0) {
        snprintf(text, bytes, "%s for %.0f s %s, as are all its ranks; is the network between them cut?",
                 who_text(waits, waiting, judge->size, who, sizeof who), waits->pulse.inside, other);
        return true;
    }
    const ts_watch_peer *const peer = &judge->peers[missed];
    latest_text(&peer->pulse, own, sizeof own);
    snprintf(text, bytes, "%s %s, while rank %d on %s has waited %.0f s for it %s",
             who_text(peer, missed, judge->size, who, sizeof who), own, waiting, waits->host, waits->pulse.inside,
             other);
    return true;
}

bool ts_watch_find_fault(const ts_watch_judge *judge, char *text, size_t bytes) {
    if (find_silence(judge, text, bytes)) {
        return true;
    }
    const int entries = make_index(judge);
    return find_mismatch(judge, entries, text, bytes) || find_deadlock(judge, entries, text, bytes);
}
