// SPDX-License-Identifier: Apache-2.0
// Making ranks return the same answer.
#include <stdio.h>

#include "core/base/status.h"
#include "core/comm/transport.h"

typedef struct message {
    int code;
    char place[256], text[1536];
} message;

// Whether the text has been through an agreement already: an outer one must not put a second rank in front.
static bool names_rank(const char *text) {
    int rank, read = 0;
    return sscanf(text, "rank %d: %n", &rank, &read) == 1 && read > 0;
}

// One reduction of a number when all is well; else the lowest failing rank gives its status and text to all.
static int share(ts_comm *comm, int status) {
    int lowest = status ? comm->rank : comm->size;
    TS_TRY(ts_mpi_check(MPI_Allreduce(MPI_IN_PLACE, &lowest, 1, MPI_INT, MPI_MIN, comm->mpi), "MPI_Allreduce"));
    if (lowest == comm->size) {
        return TS_OK;
    }
    message failure = {.code = status};
    if (lowest == comm->rank) {
        snprintf(failure.place, sizeof failure.place, "%s", ts_error_place());
        if (names_rank(ts_error_text())) {
            snprintf(failure.text, sizeof failure.text, "%s", ts_error_text());
        } else {
            snprintf(failure.text, sizeof failure.text, "rank %d: %.1500s", comm->rank, ts_error_text());
        }
    }
    TS_TRY(ts_mpi_check(MPI_Bcast(&failure, (int)sizeof failure, MPI_BYTE, lowest, comm->mpi), "MPI_Bcast"));
    ts_error_set(failure.code, failure.place, failure.text);
    return failure.code;
}

int ts_agree(ts_comm *comm, int status) {
    if (ts_comm_size(comm) == 1) {
        return status;
    }
    if (ts_comm_is_imagined(comm)) {
        return TS_FAIL(TS_EINTERNAL, "agreement over %d imagined ranks: they serve for counting only", comm->size);
    }
    ts_watch_begin(comm, TS_WATCH_AGREE, NULL, TS_U8, 0);
    status = share(comm, status);
    ts_watch_end();
    return status;
}

bool ts_agree_any(ts_comm *comm, bool flag) {
    if (ts_comm_size(comm) == 1) {
        return flag;
    }
    int any = flag;
    TS_ASSERT(!ts_comm_is_imagined(comm));
    ts_watch_begin(comm, TS_WATCH_AGREE, NULL, TS_U8, 1);
    const int status = ts_mpi_check(MPI_Allreduce(MPI_IN_PLACE, &any, 1, MPI_INT, MPI_MAX, comm->mpi), "MPI_Allreduce");
    ts_watch_end();
    if (status) {
        ts_comm_abort(comm, status);
    }
    return any != 0;
}
