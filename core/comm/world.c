// SPDX-License-Identifier: Apache-2.0
// The start and the end of the program across ranks, and what ranks tell each other about errors.
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "core/base/signal.h"
#include "core/base/status.h"
#include "core/comm/transport.h"

enum { HOST_BYTES = 64 };
static const double patience = 3;  // seconds that a failed rank waits for the others before it ends the job

static bool is_failure(int status) {
    return status != TS_OK && status != TS_ESTOPPED;
}

// Open MPI's stand-alone start forks a daemon and needs a network and an ssh client; a program without a launcher needs
// none of it. These are the variables that mpirun, srun and the other launchers set for each process; TESSERA_MPI=1
// is for one that sets none of them.
static bool has_launcher(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE",
                                        "PMIX_RANK",
                                        "PMIX_NAMESPACE",
                                        "PMI_RANK",
                                        "PMI_FD",
                                        "PMI_SIZE",
                                        "MV2_COMM_WORLD_SIZE",
                                        "PALS_RANKID",
                                        "ALPS_APP_PE",
                                        "FLUX_TASK_RANK",
                                        "JSM_NAMESPACE_RANK",
                                        "TESSERA_MPI"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (getenv(names[i])) {
            return true;
        }
    }
    const char *tasks = getenv("SLURM_STEP_NUM_TASKS");
    return tasks && atoi(tasks) > 1;
}

static int find_local_rank(ts_comm *world) {
    MPI_Comm host;
    TS_TRY(ts_mpi_check(MPI_Comm_split_type(world->mpi, MPI_COMM_TYPE_SHARED, world->rank, MPI_INFO_NULL, &host),
                        "MPI_Comm_split_type"));
    int here;
    MPI_Comm_rank(host, &world->local_rank);
    MPI_Comm_size(host, &here);
    ts_device_fix_order(here == world->size);
    MPI_Comm_free(&host);
    return TS_OK;
}

int ts_world_open(ts_comm **out, int *argc, char ***argv) {
    *out = NULL;
    if (!has_launcher()) {
        return ts_comm_new(out, MPI_COMM_NULL);
    }
    int provided;
    TS_TRY(ts_mpi_check(MPI_Init_thread(argc, argv, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread"));
    if (provided < MPI_THREAD_SERIALIZED) {
        return TS_FAIL(TS_EUSAGE, "this MPI was built without threads; use one with MPI_THREAD_SERIALIZED");
    }
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    TS_TRY(ts_comm_new(out, MPI_COMM_WORLD));
    ts_log_set_rank((*out)->rank, (*out)->size);
    TS_TRY(find_local_rank(*out));
    return ts_watch_register(*out, ts_axis_name(TS_AXIS_WORLD));
}

// All ranks come here, unless one failed alone: then the others are still inside the command, waiting for it. Returns
// the lowest failing rank, or `size` when none failed, or -1 when the others did not come.
static int meet(ts_comm *world, int status) {
    int lowest = is_failure(status) ? world->rank : world->size, arrived = 0;
    MPI_Request request;
    if (!is_failure(status)) {  // a rank that fails alone ends the job itself, in its own words
        ts_watch_begin(world, TS_WATCH_END, NULL, TS_U8, 0);
    }
    if (MPI_Iallreduce(MPI_IN_PLACE, &lowest, 1, MPI_INT, MPI_MIN, world->mpi, &request)) {
        return -1;
    }
    const double start = ts_clock_seconds();
    for (;;) {
        if (MPI_Test(&request, &arrived, MPI_STATUS_IGNORE)) {
            return -1;
        }
        if (arrived) {
            return lowest;
        }
        if (is_failure(status) && ts_clock_seconds() - start > patience) {
            return -1;
        }
        usleep(500);
    }
}

void ts_world_close(ts_comm **world, int status) {
    if (!*world) {
        return;
    }
    const bool has_mpi = (*world)->mpi != MPI_COMM_NULL;
    const int speaker = has_mpi ? meet(*world, status) : 0;
    if (speaker < 0) {
        ts_comm_abort(*world, status ? status : TS_EPEER);
    }
    ts_watch_close();
    if (is_failure(status) && speaker == (*world)->rank) {
        ts_log_set_rank(0, 1);  // the text names the rank where that matters
        TS_ERROR("%s (%s)", ts_error_text(), ts_error_place());
    }
    ts_comm_delete(world);
    ts_staged_release();
    if (has_mpi) {
        MPI_Finalize();
    }
}

_Noreturn void ts_comm_abort(ts_comm *comm, int status) {
    const int code = ts_exit_code(status);
    ts_signal_remove_guarded();
    ts_watch_abort(code, status == TS_EPEER);
    char host[HOST_BYTES] = "";
    gethostname(host, sizeof host - 1);
    fflush(stdout);
    fprintf(stderr, "[rank %d/%d %s] %s %s\n", comm->rank, comm->size, host, ts_error_place(), ts_error_text());
    fflush(stderr);
    if (ts_nccl_is_there()) {
        ts_nccl_backend.abort_all();
    }
    int started = 0;
    MPI_Initialized(&started);
    if (started) {
        MPI_Abort(MPI_COMM_WORLD, code);
    }
    exit(code);
}
