// SPDX-License-Identifier: Apache-2.0
// Facts of the program and of the host it runs on.
#include <dnnl.h>
#include <hdf5.h>
#include <inttypes.h>
#include <libavutil/avutil.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "core/base/memory.h"
#include "core/doctor/report.h"
#include "core/kernels/kernels.h"

static const double GIB = 1024.0 * 1024.0 * 1024.0;

// ---- the program

void ts_doctor_program(ts_doctor_report *r) {
    r->group = "program";
#if defined(__SANITIZE_ADDRESS__)
    const char *const kind = ", with sanitizers: slow";
#elif defined(__OPTIMIZE__)
    const char *const kind = "";
#else
    const char *const kind = ", not optimised: slow";
#endif
#if defined(__clang__)
    ts_doctor_tell(r, "compiler", TS_DOCTOR_FINE, NULL, "clang %s%s", __clang_version__, kind);
#else
    ts_doctor_tell(r, "compiler", TS_DOCTOR_FINE, NULL, "gcc %s%s", __VERSION__, kind);
#endif
    unsigned major, minor, release;
    H5get_libversion(&major, &minor, &release);
    const dnnl_version_t *dnnl = dnnl_version();
    ts_doctor_tell(r, "libraries", TS_DOCTOR_FINE, NULL, "HDF5 %u.%u.%u, oneDNN %d.%d.%d, FFmpeg %s", major, minor,
                   release, dnnl->major, dnnl->minor, dnnl->patch, av_version_info());
    ts_doctor_tell(r, "backends", TS_DOCTOR_FINE, NULL, ts_kernels_have_cuda() ? "cpu, cuda" : "cpu");
}

// ---- the host

// The rest of the first line of a file that begins with `key`; "" when there is none.
static void read_value(const char *path, const char *key, char *out, size_t bytes) {
    char line[512];
    out[0] = 0;
    FILE *file = fopen(path, "r");
    while (file && !out[0] && fgets(line, sizeof line, file)) {
        if (!strncmp(line, key, strlen(key))) {
            const char *value = line + strlen(key);
            snprintf(out, bytes, "%s", value + strspn(value, " \t:"));
            out[strcspn(out, "\n")] = 0;
        }
    }
    if (file) {
        fclose(file);
    }
}

static int usable_cores(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
}

static void tell_processor(ts_doctor_report *r) {
    const ts_kernels *kernels;
    char name[200];
    read_value("/proc/cpuinfo", "model name", name, sizeof name);
    ts_doctor_tell(r, "processor", TS_DOCTOR_FINE, NULL, "%s, %d of %ld cores may be used", name[0] ? name : "unnamed",
                   usable_cores(), sysconf(_SC_NPROCESSORS_ONLN));
    (void)ts_kernels_cpu(&kernels, "auto");  // "auto" cannot fail
    const char *const set = ts_kernels_cpu_instruction_set();
    const bool bf16 = !strcmp(set, "amx") || !strcmp(set, "avx512bf16");
    ts_doctor_tell(r, "instruction set", bf16 ? TS_DOCTOR_FINE : TS_DOCTOR_NOTE,
                   "it has no products of bf16: on the cpu, precision f32 is faster here", "%s", set);
}

static void tell_memory(ts_doctor_report *r) {
    ts_doctor_tell(r, "memory", TS_DOCTOR_FINE, NULL, "%.1f GiB to be had", (double)ts_memory_available() / GIB);
    char huge[100];
    read_value("/sys/kernel/mm/transparent_hugepage/enabled", "", huge, sizeof huge);
    const bool never = !huge[0] || strstr(huge, "[never]");
    ts_doctor_tell(r, "huge pages", never ? TS_DOCTOR_NOTE : TS_DOCTOR_FINE,
                   "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled", "%s",
                   huge[0] ? huge : "none");
    struct statvfs shared;
    if (statvfs("/dev/shm", &shared) == 0) {
        const double bytes = (double)shared.f_bavail * (double)shared.f_frsize;
        ts_doctor_tell(r, "/dev/shm", bytes < 0.25 * GIB ? TS_DOCTOR_NOTE : TS_DOCTOR_FINE,
                       "Open MPI keeps what ranks of one host share there: enlarge it (docker run --shm-size=8g)",
                       "%.1f GiB free", bytes / GIB);
    }
    struct statvfs here;
    if (statvfs(".", &here) == 0) {
        ts_doctor_tell(r, "this folder", TS_DOCTOR_FINE, NULL, "%.1f GiB free",
                       (double)here.f_bavail * (double)here.f_frsize / GIB);
    }
}

static const char *limit_text(rlim_t limit, char *out, size_t bytes) {
    if (limit == RLIM_INFINITY) {
        snprintf(out, bytes, "unlimited");
    } else {
        snprintf(out, bytes, "%" PRIu64, (uint64_t)limit);
    }
    return out;
}

static void tell_limits(ts_doctor_report *r) {
    enum { FEW_FILES = 1024 };
    struct rlimit files, locked;
    char text[2][32];
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        ts_doctor_tell(r, "open files", files.rlim_cur <= FEW_FILES ? TS_DOCTOR_NOTE : TS_DOCTOR_FINE,
                       "a data set of more shards than that cannot be opened: ulimit -n 65536", "%s",
                       limit_text(files.rlim_cur, text[0], sizeof text[0]));
    }
    if (getrlimit(RLIMIT_MEMLOCK, &locked) == 0) {
        const bool tight = ts_kernels_have_cuda() && locked.rlim_cur != RLIM_INFINITY;
        ts_doctor_tell(r, "locked memory", tight ? TS_DOCTOR_NOTE : TS_DOCTOR_FINE,
                       "InfiniBand wants it without limit: ulimit -l unlimited, for ranks too (limits.conf, or the "
                       "scheduler's unit)",
                       "%s bytes", limit_text(locked.rlim_cur, text[1], sizeof text[1]));
    }
}

void ts_doctor_host(ts_doctor_report *r) {
    r->group = "host";
    char name[256] = "";
    (void)gethostname(name, sizeof name - 1);
    ts_doctor_tell(r, "name", TS_DOCTOR_FINE, NULL, "%s", name);
    tell_processor(r);
    tell_memory(r);
    tell_limits(r);
}
