// SPDX-License-Identifier: Apache-2.0
#include "train/plan_hardware.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/status.h"

#define AT(field) .offset = offsetof(ts_hardware, field)
#define REAL(key, field, value, low, high, text)                                                                       \
    { .name = key, .type = TS_OPTION_REAL, AT(field), .otherwise = value, .help = text, .min = low, .max = high }
#define LINE(key, field, what)                                                                                         \
    REAL(key ".latency_us", field.latency_us, "0", 0, 1e9, "latency of " what ", microseconds"),                       \
        REAL(key ".gb_per_s", field.gb_per_s, "0", 0, 1e6, "bandwidth of " what ", 1e9 bytes a second")

static const char *const LINE_NAMES[TS_LINE_COUNT] = {"all_reduce", "reduce_scatter",     "reduce_scatter_started",
                                                      "all_gather", "all_gather_started", "all_to_all",
                                                      "ring",       "broadcast",          "barrier"};

// clang-format off: one option a line or two, like the page it prints
const ts_option ts_hardware_options[] = {
    {.name = "name",
     .type = TS_OPTION_STRING,
     AT(name),
     .otherwise = "unnamed",
     .help = "of the machine, for the table"},
    {
        .name = "devices_per_host",
        .type = TS_OPTION_INT,
        AT(devices_per_host),
        .min = 1,
        .max = 1 << 20,
        .help = "ranks that share a host",
    },
    REAL("memory_gib", memory_gib, "0", 0, 1e9, "memory of a device, GiB"),
    REAL("bf16_gflops", bf16_gflops, "0", 0, 1e9, "GFLOP/s of bf16 matrix products"),
    REAL("f32_gflops", f32_gflops, "0", 0, 1e9, "GFLOP/s of f32 matrix products"),
    REAL("bf16_attention_gflops", bf16_attention_gflops, "0", 0, 1e9, "GFLOP/s of bf16 attention; 0: as products"),
    REAL("f32_attention_gflops", f32_attention_gflops, "0", 0, 1e9, "GFLOP/s of f32 attention; 0: as products"),
    REAL("memory_gb_per_s", memory_gb_per_s, "0", 0, 1e9, "memory bandwidth of a device, 1e9 bytes a second"),
    REAL("overhead_us", overhead_us, "0", 0, 1e6, "microseconds that a kernel call takes beside its work"),
    REAL("wait_share", wait_share, "0", 0, 10,
         "share that computing takes longer since ranks wait for the slowest of them, moment by moment"),
    REAL("hidden_share", hidden_share, "0", 0, 1,
         "share of the gradients' messages that hides under the backward pass"),
    {.name = "comm.ranks",
     .type = TS_OPTION_INT,
     AT(comm_ranks),
     .otherwise = "2",
     .min = 2,
     .max = 1 << 20,
     .help = "ranks that the lines of comm were measured with"},
    LINE("comm.all_reduce", comm[TS_LINE_ALL_REDUCE], "all-reduce"),
    LINE("comm.reduce_scatter", comm[TS_LINE_REDUCE_SCATTER], "reduce-scatter"),
    LINE("comm.reduce_scatter_started", comm[TS_LINE_REDUCE_SCATTER_STARTED], "its asynchronous form"),
    LINE("comm.all_gather", comm[TS_LINE_ALL_GATHER], "all-gather"),
    LINE("comm.all_gather_started", comm[TS_LINE_ALL_GATHER_STARTED], "its asynchronous form"),
    LINE("comm.all_to_all", comm[TS_LINE_ALL_TO_ALL], "all-to-all"),
    LINE("comm.ring", comm[TS_LINE_RING], "ring"),
    LINE("comm.broadcast", comm[TS_LINE_BROADCAST], "broadcast"),
    LINE("comm.barrier", comm[TS_LINE_BARRIER], "barrier"),
    LINE("link", link, "any other message inside a host"),
    LINE("network", network, "a message between hosts"),
    {.name = "measured",
     .type = TS_OPTION_LIST,
     AT(measured_text),
     .help = "measured calls: entry, dtype, dimensions, FLOPs or bytes, microseconds"},
    {0}};
// clang-format on

const char *ts_line_name(ts_line_kind kind) {
    return LINE_NAMES[kind];
}

// ---- reading

static int parse_dims(const char *text, int64_t dim[4]) {
    const char *at = text;
    for (int i = 0; i < 4; i++) {
        char *end;
        dim[i] = strtoll(at, &end, 10);
        if (end == at || dim[i] < 0) {
            return TS_EUSAGE;
        }
        if (*end == '\0') {
            return TS_OK;
        }
        if (*end != 'x') {
            return TS_EUSAGE;
        }
        at = end + 1;
    }
    return TS_EUSAGE;
}

static int parse_dtype(const char *text, ts_dtype *out) {
    static const ts_dtype known[] = {TS_F32, TS_BF16, TS_U8};  // those of kernel calls
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (!strcasecmp(text, ts_dtype_name(known[i]))) {
            *out = known[i];
            return TS_OK;
        }
    }
    return TS_EUSAGE;
}

// "gemm bf16 1024x384x1536 1207959552 131.5"
static int parse_measured(ts_measured *out, const char *text, const char *path) {
    char dtype[8], dims[96], rest;
    *out = (ts_measured){0};
    double microseconds = 0;
    const int fields =
        sscanf(text, "%31s %7s %95s %lf %lf %c", out->entry, dtype, dims, &out->work, &microseconds, &rest);
    out->seconds = 1e-6 * microseconds;
    if (fields != 5 || parse_dtype(dtype, &out->dtype) || parse_dims(dims, out->dim) || !(out->work >= 0) ||
        !isfinite(out->work) || !(microseconds > 0) || !isfinite(microseconds)) {
        return TS_FAIL(TS_EUSAGE,
                       "%s: measured: '%.80s' is not entry, dtype, dimensions, work and microseconds; write it with "
                       "tessera bench kernels --plan CONFIG.yaml --write-hardware %s",
                       path, text, path);
    }
    return TS_OK;
}

int ts_hardware_read(ts_hardware *out, ts_arena *arena, const char *path) {
    *out = (ts_hardware){0};
    TS_TRY(ts_options_default(ts_hardware_options, out, arena));
    TS_TRY(ts_options_read_yaml(ts_hardware_options, out, arena, path));
    out->path = path;
    out->measured_count = out->measured_text.count;
    out->measured = ts_arena_alloc(arena, (size_t)(out->measured_count + 1) * sizeof *out->measured);
    if (!out->measured) {
        return TS_ERESOURCE;
    }
    for (int64_t i = 0; i < out->measured_count; i++) {
        TS_TRY(parse_measured(&out->measured[i], out->measured_text.items[i], path));
    }
    return TS_OK;
}

// ---- writing

static void write_measured(const ts_measured *m, FILE *out) {
    int dims = 4;
    while (dims > 1 && m->dim[dims - 1] == 0) {
        dims--;
    }
    fprintf(out, "  - %s %s ", m->entry, ts_dtype_name(m->dtype));
    for (int i = 0; i < dims; i++) {
        fprintf(out, "%s%" PRId64, i ? "x" : "", m->dim[i]);
    }
    fprintf(out, " %.0f %.4g\n", m->work, 1e6 * m->seconds);
}

// Everything but the list, which stands last in the table and takes a line for each call.
static int write_figures(const ts_hardware *hardware, FILE *out) {
    enum { FIGURES = sizeof ts_hardware_options / sizeof *ts_hardware_options - 2 };
    ts_option table[FIGURES + 1];
    memcpy(table, ts_hardware_options, FIGURES * sizeof *table);
    table[FIGURES] = (ts_option){0};
    return ts_options_write_yaml(table, hardware, out);
}

int ts_hardware_write(const ts_hardware *hardware, const char *comment, const char *path) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *memory = open_memstream(&text, &bytes);
    if (!memory) {
        return TS_FAIL(TS_ERESOURCE, "%s: out of memory", path);
    }
    fputs(comment, memory);
    int status = write_figures(hardware, memory);
    if (hardware->measured_count > 0) {
        fputs("# entry, dtype, dimensions, FLOPs or bytes, microseconds\nmeasured:\n", memory);
    }
    for (int64_t i = 0; i < hardware->measured_count; i++) {
        write_measured(&hardware->measured[i], memory);
    }
    if (fclose(memory) && !status) {
        status = TS_FAIL(TS_ERESOURCE, "%s: out of memory", path);
    }
    status = status ? status : ts_file_write_atomic(path, text, bytes);
    free(text);
    return status;
}

// ---- kernel calls

static bool is_attention(const ts_cost *cost) {
    return !strcmp(cost->entry, "attention_forward") || !strcmp(cost->entry, "attention_backward");
}

// None in a product with an empty side.
double ts_hardware_work(const ts_cost *cost) {
    return is_attention(cost) || !strcmp(cost->entry, "gemm") ? cost->flops : cost->bytes;
}

// How far sides and work are apart, as sum of |log ratio|.
static double distance(const ts_measured *m, const ts_cost *cost) {
    double sum = fabs(log(ts_hardware_work(cost) / m->work));
    for (int i = 0; i < 4; i++) {
        sum += fabs(log((1.0 + (double)m->dim[i]) / (1.0 + (double)cost->dim[i])));
    }
    return sum;
}

static const ts_measured *nearest(const ts_hardware *h, const ts_cost *cost) {
    const ts_measured *best = NULL;
    double least = INFINITY;
    for (int64_t i = 0; i < h->measured_count; i++) {
        const ts_measured *m = &h->measured[i];
        const bool alike = m->work > 0 && m->dtype == cost->dtype && !strcmp(m->entry, cost->entry);
        const double d = alike ? distance(m, cost) : INFINITY;
        if (d < least) {
            least = d;
            best = m;
        }
    }
    return best;
}

// FLOP/s that the file gives for such calls, or 0.
static double rate_of(const ts_hardware *h, const ts_cost *cost) {
    const bool bf16 = cost->dtype == TS_BF16;
    const double products = bf16 ? h->bf16_gflops : h->f32_gflops;
    const double attention = bf16 ? h->bf16_attention_gflops : h->f32_attention_gflops;
    return 1e9 * (is_attention(cost) && attention > 0 ? attention : products);
}

int ts_hardware_call(const ts_hardware *h, const ts_cost *cost, double *seconds) {
    const double work = ts_hardware_work(cost), overhead = 1e-6 * h->overhead_us;
    *seconds = overhead;
    if (work <= 0) {
        return TS_OK;
    }
    const ts_measured *m = nearest(h, cost);
    if (m) {
        *seconds += m->seconds * (work / m->work);
        return TS_OK;
    }
    const double rate = rate_of(h, cost), bandwidth = 1e9 * h->memory_gb_per_s;
    if (bandwidth <= 0 || (cost->flops > 0 && rate <= 0)) {
        return TS_FAIL(TS_EUSAGE, "%s: neither a measured %s nor %s is in it; write %s", h->path, cost->entry,
                       bandwidth <= 0          ? "memory_gb_per_s"
                       : cost->dtype == TS_F32 ? "f32_gflops"
                                               : "bf16_gflops",
                       "them, or measure this machine with tessera bench kernels --plan CONFIG.yaml --write-hardware");
    }
    *seconds += fmax(cost->flops > 0 ? cost->flops / rate : 0, cost->bytes / bandwidth);
    return TS_OK;
}

// ---- messages

// Latency and seconds a byte for one peer.
typedef struct pace {
    double latency, per_byte;
} pace;

static pace pace_of(ts_hardware_line line, int peers) {
    return (pace){1e-6 * line.latency_us / peers, line.gb_per_s > 0 ? 1e-9 / line.gb_per_s : 0};
}

static bool is_said(ts_hardware_line line) {
    return line.gb_per_s > 0;
}

static int inside(const ts_hardware *h, ts_line_kind kind, pace *out) {
    const bool measured = is_said(h->comm[kind]);
    const int peers = kind == TS_LINE_RING ? 1 : (int)h->comm_ranks - 1;
    *out = measured ? pace_of(h->comm[kind], peers) : pace_of(h->link, 1);
    if (!measured && !is_said(h->link)) {
        return TS_FAIL(TS_EUSAGE,
                       "%s: neither comm.%s nor link is in it; measure it with mpirun -n %" PRId64
                       " tessera bench comm --write-hardware",
                       h->path, LINE_NAMES[kind], h->devices_per_host);
    }
    return TS_OK;
}

static int between(const ts_hardware *h, pace *out) {
    *out = pace_of(h->network, 1);
    return is_said(h->network) ? TS_OK
                               : TS_FAIL(TS_EUSAGE,
                                         "%s: network is missing, and these ranks do not fit on a host of %" PRId64
                                         "; write its latency_us and gb_per_s",
                                         h->path, h->devices_per_host);
}

// Ranks on the first rank's host.
static int neighbours(const ts_hardware *h, ts_placement p) {
    const int64_t on_host = (h->devices_per_host + p.stride - 1) / p.stride;
    return on_host < p.size ? (int)on_host : p.size;
}

int ts_hardware_message(const ts_hardware *h, ts_line_kind kind, ts_placement p, double calls, double bytes,
                        double *seconds) {
    *seconds = 0;
    if (p.size == 1 || calls <= 0) {
        return TS_OK;
    }
    if (!h->devices_per_host) {
        return TS_FAIL(TS_EUSAGE, "%s: devices_per_host is missing; write how many ranks share a host", h->path);
    }
    const int near = neighbours(h, p), far = p.size - near;
    const bool one_peer = kind == TS_LINE_RING;
    pace in = {0}, out = {0};
    if (near > 1) {
        TS_TRY(inside(h, kind, &in));
    }
    if (far > 0) {
        TS_TRY(between(h, &out));
    }
    if (one_peer) {
        *seconds = calls * fmax(in.latency, out.latency) + bytes * fmax(in.per_byte, out.per_byte);
        return TS_OK;
    }
    const double each = bytes / (p.size - 1);
    *seconds =
        (near - 1) * (calls * in.latency + each * in.per_byte) + far * (calls * out.latency + each * out.per_byte);
    return TS_OK;
}
