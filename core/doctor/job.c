// SPDX-License-Identifier: Apache-2.0
// Facts of the ranks and of the GPUs under them.
#include <inttypes.h>
#include <mpi.h>
#include <omp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/doctor/report.h"
#include "core/kernels/cuda_facts.h"
#include "core/kernels/kernels.h"

// ---- ranks

static void tell_threads(ts_doctor_report *r, int64_t ranks) {
    const char *const threads = getenv("OMP_NUM_THREADS"), *const policy = getenv("OMP_WAIT_POLICY");
    const int64_t cores = omp_get_num_procs(), wanted = threads ? atoll(threads) * ranks : 0;
    ts_doctor_tell(r, "threads", wanted > cores && ranks > 1 ? TS_DOCTOR_NOTE : TS_DOCTOR_FINE,
                   "more threads than cores slow each other down: OMP_NUM_THREADS=1, or unset it and let each rank "
                   "take its share",
                   "OMP_NUM_THREADS %s", threads ? threads : "not set: the cores are shared out over the ranks");
    const bool passive = policy && !strcmp(policy, "passive");
    if (ranks > 1) {
        ts_doctor_tell(r, "waiting", passive ? TS_DOCTOR_FINE : TS_DOCTOR_NOTE,
                       "where other programs run beside, threads that wait should sleep: OMP_WAIT_POLICY=passive",
                       "OMP_WAIT_POLICY %s", policy ? policy : "not set");
    }
}

void ts_doctor_ranks(ts_doctor_report *r, ts_comm *world, int64_t ranks) {
    char version[MPI_MAX_LIBRARY_VERSION_STRING];
    int length;
    r->group = "ranks";
    MPI_Get_library_version(version, &length);
    version[strcspn(version, ",\n")] = 0;
    ts_doctor_tell(r, "MPI", TS_DOCTOR_FINE, NULL, "%s", version);
    const int size = ts_comm_size(world);
    if (size == 1) {
        ts_doctor_tell(r, "ranks", TS_DOCTOR_FINE, NULL,
                       "one, without a launcher: mpirun -n N tessera doctor shows how "
                       "N lie on the machine");
    } else {
        ts_doctor_tell(r, "ranks", TS_DOCTOR_FINE, NULL, "%d, of which %" PRId64 " on this host", size, ranks);
    }
    tell_threads(r, ranks);
    const char *const transport = getenv("TESSERA_TRANSPORT");
    ts_doctor_tell(r, "transport", TS_DOCTOR_FINE, NULL, "%s",
                   transport ? transport : "auto: shared memory within a host, MPI between hosts");
}

// ---- GPUs

static void tell_versions(ts_doctor_report *r, const ts_cuda_facts *f) {
    ts_doctor_tell(r, "CUDA", TS_DOCTOR_FINE, NULL, "runtime %d.%d, cuBLASLt %zu, NCCL %d.%d.%d", f->runtime / 1000,
                   f->runtime % 1000 / 10, f->cublaslt, f->nccl / 10000, f->nccl % 10000 / 100, f->nccl % 100);
    if (f->driver) {
        ts_doctor_tell(r, "driver", TS_DOCTOR_FINE, NULL, "for CUDA %d.%d", f->driver / 1000, f->driver % 1000 / 10);
    }
}

static void tell_gpu(ts_doctor_report *r, int index, const ts_gpu_facts *g) {
    char name[16];
    snprintf(name, sizeof name, "GPU %d", index);
    ts_doctor_tell(r, name, g->supported ? TS_DOCTOR_FINE : TS_DOCTOR_PROBLEM,
                   "compute capability 8.0 is the oldest that is supported: hide it with CUDA_VISIBLE_DEVICES",
                   "%s, %.0f GiB, %d multiprocessors, compute capability %d.%d, our kernels as %s", g->name,
                   (double)g->memory_bytes / (1024.0 * 1024.0 * 1024.0), g->multiprocessors, g->major, g->minor,
                   g->code ? g->code : "nothing it can run");
}

static void tell_ranks_per_gpu(ts_doctor_report *r, int64_t ranks, int gpus) {
    const bool crowded = ranks > gpus;
    ts_doctor_tell(r, "ranks per GPU", crowded ? TS_DOCTOR_NOTE : TS_DOCTOR_FINE,
                   "ranks that share a GPU exchange through the host, which is slow: start one for each GPU",
                   "%" PRId64 " rank%s on %d GPU%s%s", ranks, ranks == 1 ? "" : "s", gpus, gpus == 1 ? "" : "s",
                   crowded ? ": staged through the host" : "");
}

void ts_doctor_gpus(ts_doctor_report *r, int64_t ranks) {
    r->group = "GPUs";
    if (!ts_cuda_facts_read) {
        ts_doctor_tell(r, "CUDA", TS_DOCTOR_NOTE,
                       "runs on the cpu; for GPUs configure with -DTS_CUDA=ON on a machine with nvcc and build again",
                       "this program was built without it");
        return;
    }
    ts_cuda_facts facts;
    ts_cuda_facts_read(&facts);
    tell_versions(r, &facts);
    if (facts.gpus == 0) {
        ts_doctor_tell(r, "GPUs", TS_DOCTOR_NOTE, "until then everything runs on the cpu", "none: %s", facts.problem);
        return;
    }
    for (int i = 0; i < facts.gpus && i < TS_MAX_GPU_FACTS; i++) {
        tell_gpu(r, i, &facts.gpu[i]);
    }
    tell_ranks_per_gpu(r, ranks, facts.gpus);
}
