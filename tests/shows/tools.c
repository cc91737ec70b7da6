// SPDX-License-Identifier: Apache-2.0
// What the scripts of tests/shows need beside the program itself:
//
//   shows-tools compare A FRAME B FRAME COUNT [X,Y,W,H]
//       saved latents: COUNT latent frames of A from FRAME on against as many of B (0: all that A has left); with a box
//       of latent positions, only what is outside it. Prints the largest difference, the root of the mean squared one,
//       and how many numbers are not the same bits.
//   shows-tools encode CODEC VIDEO FRAME COUNT OUT
//       what the codec makes of COUNT pixel frames (0: all that are left): 1 + 4k of them as a clip, 4k as groups alone
//   shows-tools steer SOCKET
//       sends standard input to a running job as it comes, whatever it is, and prints what is answered
//   shows-tools peak COMMAND..
//       runs a command; prints, last on standard error, "peak KIB processor S": of its largest process, of all
//   shows-tools cost MODEL ROUNDS
//       processor's seconds of sampling a video by the plainest loop and as a canvas, and per cent more
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/status.h"
#include "core/media/video.h"
#include "core/model/codec.h"
#include "core/store/safetensors.h"
#include "tests/shows/cost.h"

// ---- latents

typedef struct latents {
    int64_t frames, height, width, channels;
    float *x;
} latents;

static int read_latents(const char *path, latents *out) {
    ts_safetensors *file = NULL;
    TS_TRY(ts_safetensors_open(&file, path));
    const ts_safetensors_entry *entry = ts_safetensors_find(file, "latents");
    int status = TS_OK;
    if (!entry || entry->shape.ndim != 4) {
        status = TS_FAIL(TS_EINPUT, "%s: has no \"latents\" [T, H, W, C]", path);
    } else {
        const int64_t *dim = entry->shape.dim;
        *out = (latents){dim[0], dim[1], dim[2], dim[3], NULL};
        out->x = ts_malloc((size_t)(dim[0] * dim[1] * dim[2] * dim[3]) * sizeof *out->x);
        status = out->x ? ts_safetensors_read_f32(file, "latents", entry->shape, out->x) : TS_ERESOURCE;
    }
    ts_safetensors_close(&file);
    return status;
}

static int compare(char **argument, int count) {
    latents a = {0}, b = {0};
    int box[4] = {0};
    TS_TRY(read_latents(argument[0], &a));
    TS_TRY(read_latents(argument[2], &b));
    const int64_t first_a = atoll(argument[1]), first_b = atoll(argument[3]);
    const int64_t frames = atoll(argument[4]) ? atoll(argument[4]) : a.frames - first_a;
    if (a.height != b.height || a.width != b.width || a.channels != b.channels || first_a + frames > a.frames ||
        first_b + frames > b.frames ||
        (count > 5 && sscanf(argument[5], "%d,%d,%d,%d", box, box + 1, box + 2, box + 3) != 4)) {
        return TS_FAIL(TS_EUSAGE, "%s, %s: these frames are not there, or not of one size", argument[0], argument[2]);
    }
    double largest = 0.0, squares = 0.0;
    int64_t unequal = 0, numbers = 0;
    for (int64_t i = 0; i < frames * a.height * a.width; i++) {
        const int64_t x = i % a.width, y = i / a.width % a.height;
        if (x >= box[0] && x < box[0] + box[2] && y >= box[1] && y < box[1] + box[3]) {
            continue;
        }
        const float *p = a.x + (first_a * a.height * a.width + i) * a.channels;
        const float *q = b.x + (first_b * b.height * b.width + i) * b.channels;
        for (int64_t c = 0; c < a.channels; c++) {
            const double difference = fabs((double)p[c] - (double)q[c]);
            largest = fmax(largest, difference);
            squares += difference * difference;
            unequal += memcmp(&p[c], &q[c], sizeof p[c]) != 0;
            numbers++;
        }
    }
    printf("%.3g %.4g %lld\n", largest, sqrt(squares / (double)numbers), (long long)unequal);
    free(a.x);
    free(b.x);
    return TS_OK;
}

static int write_latents(const ts_codec *codec, const uint8_t *rgb, int64_t frames, ts_video_info info,
                         const char *path) {
    const ts_codec_info c = ts_codec_get_info(codec);
    const bool groups = frames % c.time_factor == 0;
    const int64_t t = frames / c.time_factor + !groups, h = info.height / c.space_factor,
                  w = info.width / c.space_factor;
    float *x = ts_malloc((size_t)(t * h * w * c.channels) * sizeof *x);
    int status = !x       ? TS_ERESOURCE
                 : groups ? ts_codec_encode_groups(codec, rgb, t, info.height, info.width, x)
                          : ts_codec_encode(codec, rgb, frames, info.height, info.width, x);
    if (!status) {
        const ts_safetensors_item item = {"latents", TS_F32, TS_SHAPE(t, h, w, c.channels), x};
        status = ts_safetensors_write(path, &item, 1, NULL);
    }
    free(x);
    return status;
}

static int encode(char **argument) {
    const ts_video_limits limits = ts_video_limits_default();
    const int64_t first = atoll(argument[2]), wanted = atoll(argument[3]);
    ts_codec *codec = NULL;
    ts_video_reader *reader = NULL;
    TS_TRY(ts_codec_load(&codec, argument[0]));
    TS_TRY(ts_video_reader_open(&reader, argument[1], &limits));
    const ts_video_info info = ts_video_reader_info(reader);
    const int64_t bytes = info.width * info.height * 3;
    uint8_t *rgb = NULL;
    int64_t frames = 0;
    int status = TS_OK;
    for (int64_t i = 0; !status && (!wanted || frames < wanted); i++) {
        uint8_t *grown = realloc(rgb, (size_t)((frames + 1) * bytes));
        double time;
        rgb = grown ? grown : rgb;
        status = grown ? ts_video_reader_next(reader, rgb + frames * bytes, &time) : TS_ERESOURCE;
        frames += !status && i >= first;
    }
    status = status == TS_EOF ? TS_OK : status;
    status = status ? status : write_latents(codec, rgb, frames, info, argument[4]);
    free(rgb);
    ts_video_reader_close(&reader);
    ts_codec_close(&codec);
    return status;
}

// ---- steering

static int connect_to(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    for (int attempt = 0; attempt < 500; attempt++) {  // the job may not have begun to listen
        const int s = socket(AF_UNIX, SOCK_STREAM, 0);
        if (s >= 0 && connect(s, (struct sockaddr *)&address, sizeof address) == 0) {
            return s;
        }
        close(s);
        usleep(20 * 1000);
    }
    return -1;
}

// Ends when the job closes the connection, or a while after the last line was sent.
static int steer(const char *path) {
    const int s = connect_to(path);
    if (s < 0) {
        return TS_FAIL(TS_EINPUT, "%s: nobody listens: %s", path, strerror(errno));
    }
    char buffer[65536];
    bool sending = true;
    for (;;) {
        struct pollfd wait[] = {{.fd = s, .events = POLLIN}, {.fd = sending ? 0 : -1, .events = POLLIN}};
        if (poll(wait, 2, 60 * 1000) <= 0) {
            break;
        }
        if (wait[1].revents) {
            const ssize_t got = read(0, buffer, sizeof buffer);
            sending = got > 0 && send(s, buffer, (size_t)got, MSG_NOSIGNAL) == got;
        }
        if (wait[0].revents) {
            const ssize_t got = read(s, buffer, sizeof buffer);
            if (got <= 0) {
                break;
            }
            fwrite(buffer, 1, (size_t)got, stdout);
            fflush(stdout);
        }
    }
    close(s);
    return TS_OK;
}

// ---- memory and time

static int peak(char **command) {
    const pid_t child = fork();
    if (child == 0) {
        execvp(command[0], command);
        _exit(127);
    }
    int code = 0;
    struct rusage usage;
    if (child < 0 || waitpid(child, &code, 0) < 0 || getrusage(RUSAGE_CHILDREN, &usage)) {
        return TS_FAIL(TS_ERESOURCE, "%s: %s", command[0], strerror(errno));
    }
    const double seconds = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                           1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    fprintf(stderr, "peak %ld processor %.3f\n", usage.ru_maxrss, seconds);
    return WIFEXITED(code) && WEXITSTATUS(code) == 0 ? TS_OK : TS_FAIL(TS_EPEER, "%s failed", command[0]);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    int status = TS_EUSAGE;
    if (strcmp(what, "compare") == 0 && argc >= 7) {
        status = compare(argv + 2, argc - 2);
    } else if (strcmp(what, "encode") == 0 && argc == 7) {
        status = encode(argv + 2);
    } else if (strcmp(what, "steer") == 0 && argc == 3) {
        status = steer(argv[2]);
    } else if (strcmp(what, "cost") == 0 && argc == 4 && atoi(argv[3]) > 0) {
        status = shows_cost(argv[2], atoi(argv[3]));
    } else if (strcmp(what, "peak") == 0 && argc >= 3) {
        status = peak(argv + 2);
    } else {
        fprintf(stderr, "usage: shows-tools compare|encode|steer|peak|cost ..; see tests/shows/tools.c\n");
        return 2;
    }
    if (status) {
        fprintf(stderr, "shows-tools: %s\n", ts_error_text());
    }
    return ts_exit_code(status);
}
