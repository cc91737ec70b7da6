// SPDX-License-Identifier: Apache-2.0
// How the memory of a device travels between ranks: over NCCL where every rank has a GPU of its own, else through the
// host.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/base/status.h"
#include "core/comm/transport.h"

enum { NAME_BYTES = 48 };

ts_device_choice ts_device_wanted = TS_DEVICE_TRANSPORT_AUTO;

ts_nccl_sums_choice ts_nccl_sums = TS_NCCL_SUMS_AUTO;
bool ts_nccl_registers = false;
int64_t ts_nccl_window = 64 << 20;

// One of `count` words, `said` being how the message lists them.
static int read_choice(const char *variable, const char *const *words, int count, const char *said, int *out) {
    const char *const text = getenv(variable);
    for (int i = 0; i < count && text; i++) {
        if (!strcmp(text, words[i])) {
            *out = i;
            return TS_OK;
        }
    }
    return text ? TS_FAIL(TS_EUSAGE, "%s=%.40s: use %s", variable, text, said) : TS_OK;
}

int ts_device_read_environment(void) {
    static const char *const ways[] = {[TS_DEVICE_TRANSPORT_AUTO] = "auto",
                                       [TS_DEVICE_TRANSPORT_NCCL] = "nccl",
                                       [TS_DEVICE_TRANSPORT_STAGED] = "staged"};
    static const char *const sums[] = {
        [TS_NCCL_SUMS_AUTO] = "auto", [TS_NCCL_SUMS_ORDERED] = "ordered", [TS_NCCL_SUMS_NCCL] = "nccl"};
    static const char *const no_yes[] = {"0", "1"};
    int way = (int)ts_device_wanted, sum = (int)ts_nccl_sums, registers = ts_nccl_registers;
    TS_TRY(read_choice("TESSERA_DEVICE_TRANSPORT", ways, 3, "auto, nccl or staged", &way));
    TS_TRY(read_choice("TESSERA_NCCL_SUMS", sums, 3, "auto, ordered or nccl", &sum));
    TS_TRY(read_choice("TESSERA_NCCL_REGISTER", no_yes, 2, "0 or 1", &registers));
    ts_device_wanted = (ts_device_choice)way;
    ts_nccl_sums = (ts_nccl_sums_choice)sum;
    ts_nccl_registers = registers;
    return TS_OK;
}

void ts_device_fix_order(bool one_host) {
    if (ts_nccl_sums == TS_NCCL_SUMS_NCCL || (ts_nccl_sums == TS_NCCL_SUMS_AUTO && !one_host)) {
        setenv("NCCL_ALGO", "Ring", 0);  // what the user has set stays
    }
}

// ---- who is where

// Where a rank is. Names of hosts may be given twice, numbers of a kernel's start are not.
typedef struct seat {
    char host[NAME_BYTES], gpu[NAME_BYTES];
} seat;

static int find_seat(seat *own, bool nccl) {
    *own = (seat){.gpu = ""};
    FILE *const file = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (!file || !fgets(own->host, NAME_BYTES, file)) {
        MPI_Get_processor_name(own->host, &(int){0});
    }
    if (file) {
        fclose(file);
    }
    return nccl ? ts_nccl_backend.name_gpu(own->gpu, NAME_BYTES) : TS_OK;
}

static bool same_gpu(const seat *a, const seat *b) {
    return !memcmp(a->host, b->host, NAME_BYTES) && !strcmp(a->gpu, b->gpu);
}

// Sets comm->one_host; returns the most ranks on one GPU, and its name.
static int count_sharing(ts_comm *comm, const seat *seats, const char **gpu) {
    int most = 1;
    comm->one_host = true;
    for (int a = 0; a < comm->size; a++) {
        int here = 0;
        for (int b = 0; b < comm->size; b++) {
            here += same_gpu(&seats[a], &seats[b]);
        }
        *gpu = here > most ? seats[a].gpu : *gpu;
        most = here > most ? here : most;
        comm->one_host = comm->one_host && !memcmp(seats[a].host, seats[0].host, NAME_BYTES);
    }
    return most;
}

// ---- the choice

// One line for each way, not one for each axis.
static void tell(const char *how) {
    static char told[2][160];
    for (int i = 0; i < 2; i++) {
        if (!strcmp(told[i], how)) {
            return;
        }
        if (!told[i][0]) {
            snprintf(told[i], sizeof told[i], "%s", how);
            TS_INFO("%s", how);
            return;
        }
    }
}

static int take_nccl(ts_comm *comm) {
    const int version = ts_nccl_backend.version();
    char how[160];
    TS_TRY(ts_nccl_backend.open(comm));
    comm->device_transport = ts_nccl_backend.transport;
    snprintf(how, sizeof how, "device memory travels over NCCL %d.%d.%d", version / 10000, version / 100 % 100,
             version % 100);
    tell(how);
    return TS_OK;
}

static int take_staged(ts_comm *comm, const char *why) {
    char how[160];
    comm->device_transport = &ts_staged_transport;
    snprintf(how, sizeof how, "device memory travels through the host: %s", why);
    tell(how);
    return TS_OK;
}

static int choose(ts_comm *comm, bool nccl, const seat *seats) {
    const char *gpu = "";
    char shared[96];
    const int sharing = count_sharing(comm, seats, &gpu);
    snprintf(shared, sizeof shared, "%d ranks share GPU %s", sharing, gpu);
    if (ts_device_wanted == TS_DEVICE_TRANSPORT_STAGED) {
        return take_staged(comm, "as TESSERA_DEVICE_TRANSPORT says");
    }
    if (!nccl) {
        return ts_device_wanted == TS_DEVICE_TRANSPORT_AUTO
                   ? take_staged(comm, "there is no NCCL for it")
                   : TS_FAIL(TS_EUSAGE,
                             "TESSERA_DEVICE_TRANSPORT=nccl: this program has no NCCL for the memory of "
                             "device %s; use auto",
                             comm->device->name);
    }
    if (sharing == 1 || ts_nccl_backend.shares_gpus()) {
        return take_nccl(comm);
    }
    return ts_device_wanted == TS_DEVICE_TRANSPORT_AUTO
               ? take_staged(comm, shared)
               : TS_FAIL(TS_EUSAGE,
                         "TESSERA_DEVICE_TRANSPORT=nccl: %s, which NCCL %s; use auto, or start one rank for "
                         "each GPU",
                         shared, "before 2.30 refuses");
}

int ts_device_open(ts_comm *comm, const ts_device *device) {
    const bool nccl = ts_nccl_is_there() && ts_nccl_backend.device == device;
    seat own, *const seats = calloc((size_t)comm->size, sizeof *seats);
    comm->device = device;
    int status = seats ? find_seat(&own, nccl) : TS_FAIL(TS_ERESOURCE, "out of memory for %d ranks", comm->size);
    if (!status) {
        status =
            ts_mpi_check(MPI_Allgather(&own, (int)sizeof own, MPI_BYTE, seats, (int)sizeof own, MPI_BYTE, comm->mpi),
                         "MPI_Allgather");
    }
    if (!status) {
        status = choose(comm, nccl, seats);
    }
    free(seats);
    return status;
}

void ts_device_close(ts_comm *comm) {
    if (comm->nccl) {
        ts_nccl_backend.close(comm);
    }
}

bool ts_comm_records(const ts_comm *comm) {
    return ts_comm_size(comm) == 1 || (comm->nccl && comm->device_transport != &ts_staged_transport);
}
