// SPDX-License-Identifier: Apache-2.0
// The sockets of the watch: addresses, connecting, and messages over connections that never block.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/clock.h"
#include "core/base/status.h"
#include "core/comm/watch_private.h"

static const double patience = 20;  // seconds to connect

static socklen_t address_bytes(const ts_watch_address *address) {
    return address->any.sa_family == AF_INET ? sizeof address->v4 : sizeof address->v6;
}

static const char *address_text(const ts_watch_address *address, char out[INET6_ADDRSTRLEN]) {
    const void *const bits =
        address->any.sa_family == AF_INET ? (const void *)&address->v4.sin_addr : (const void *)&address->v6.sin6_addr;
    return inet_ntop(address->any.sa_family, bits, out, INET6_ADDRSTRLEN) ? out : "?";
}

static void set_port(ts_watch_address *address, in_port_t port) {
    if (address->any.sa_family == AF_INET) {
        address->v4.sin_port = port;
    } else {
        address->v6.sin6_port = port;
    }
}

// ---- rank 0: where it listens

static bool is_usable(const struct ifaddrs *item) {
    if (!item->ifa_addr || !(item->ifa_flags & IFF_UP)) {
        return false;
    }
    const ts_watch_address *const address = (const ts_watch_address *)(const void *)item->ifa_addr;
    return item->ifa_addr->sa_family == AF_INET ||
           (item->ifa_addr->sa_family == AF_INET6 && !IN6_IS_ADDR_LINKLOCAL(&address->v6.sin6_addr));
}

static bool is_wanted(const struct ifaddrs *item, const ts_watch_address *address, const char *network) {
    char text[INET6_ADDRSTRLEN];
    return !network || !*network || strcmp(item->ifa_name, network) == 0 ||
           strcmp(address_text(address, text), network) == 0;
}

// The addresses of this host that are up, loopback last, and as many as fit.
static int list_addresses(ts_watch_invitation *out, const char *network) {
    struct ifaddrs *list = NULL;
    if (getifaddrs(&list)) {
        return TS_FAIL(TS_ERESOURCE, "cannot list the network interfaces: %s", strerror(errno));
    }
    out->count = 0;
    for (int loopback = 0; loopback < 2; loopback++) {
        for (const struct ifaddrs *item = list; item && out->count < TS_WATCH_ADDRESSES; item = item->ifa_next) {
            if (!is_usable(item) || !(item->ifa_flags & IFF_LOOPBACK) != !loopback) {
                continue;
            }
            ts_watch_address address = {0};
            memcpy(&address, item->ifa_addr,
                   item->ifa_addr->sa_family == AF_INET ? sizeof address.v4 : sizeof address.v6);
            if (is_wanted(item, &address, network)) {
                out->address[out->count++] = address;
            }
        }
    }
    freeifaddrs(list);
    return out->count ? TS_OK
                      : TS_FAIL(TS_EUSAGE,
                                "watch.network '%s': the host of rank 0 has no such interface or address that is up",
                                network ? network : "");
}

// A listening socket at a port that the system chooses; -1 when the family does not exist here.
static int listen_at(ts_watch_address where, in_port_t *port) {
    const int family = where.any.sa_family, fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), on = 1;
    socklen_t bytes = address_bytes(&where);
    if (fd < 0) {
        return -1;
    }
    if ((family == AF_INET6 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on)) ||
        bind(fd, &where.any, bytes) || listen(fd, SOMAXCONN) || getsockname(fd, &where.any, &bytes)) {
        close(fd);
        return -1;
    }
    *port = family == AF_INET ? where.v4.sin_port : where.v6.sin6_port;
    return fd;
}

// All addresses of a family, or the first of the one network.
static ts_watch_address where_to_listen(const ts_watch_invitation *addresses, int family, const char *network) {
    ts_watch_address where = {.any.sa_family = (sa_family_t)family};
    for (int i = addresses->count; network && *network && i-- > 0;) {
        where = addresses->address[i].any.sa_family == family ? addresses->address[i] : where;
    }
    return where;
}

int ts_watch_listen(int fds[2], ts_watch_invitation *out, const char *network) {
    in_port_t port[2] = {0, 0};
    TS_TRY(list_addresses(out, network));
    if (getrandom(&out->token, sizeof out->token, 0) != sizeof out->token) {
        return TS_FAIL(TS_ERESOURCE, "no random numbers from the system: %s", strerror(errno));
    }
    fds[0] = listen_at(where_to_listen(out, AF_INET, network), &port[0]);
    fds[1] = listen_at(where_to_listen(out, AF_INET6, network), &port[1]);
    int kept = 0;
    for (int i = 0; i < out->count; i++) {
        const int v6 = out->address[i].any.sa_family == AF_INET6;
        if (fds[v6] >= 0) {
            out->address[kept] = out->address[i];
            set_port(&out->address[kept++], port[v6]);
        }
    }
    out->count = kept;
    return kept ? TS_OK : TS_FAIL(TS_ERESOURCE, "cannot open a listening socket: %s", strerror(errno));
}

// ---- the others: connecting

static void start_connecting(ts_watch_wire *wire, const ts_watch_address *address) {
    const int on = 1;
    *wire = (ts_watch_wire){.fd = socket(address->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    if (wire->fd < 0) {
        return;
    }
    (void)setsockopt(wire->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);  // a matter of speed alone
    if (connect(wire->fd, &address->any, address_bytes(address)) && errno != EINPROGRESS) {
        close(wire->fd);
        wire->fd = -1;
    }
}

static void drop(ts_watch_wire *wire) {
    close(wire->fd);
    wire->fd = -1;
}

// Goes on with one attempt; true when rank 0 has answered.
static bool go_on(ts_watch_wire *wire, short events, const ts_watch_frame *hello) {
    if (wire->out.type == 0 && events) {  // connected, or refused
        int error = 0;
        socklen_t bytes = sizeof error;
        if (getsockopt(wire->fd, SOL_SOCKET, SO_ERROR, &error, &bytes) || error) {
            drop(wire);
            return false;
        }
        ts_watch_send(wire, TS_WATCH_HELLO, &hello->body.hello, sizeof hello->body.hello);
    }
    ts_watch_flush(wire);
    const int got = events & (POLLIN | POLLHUP | POLLERR) ? ts_watch_receive(wire) : 0;
    if (got > 0 && wire->in.type == TS_WATCH_WELCOME && wire->in.body.token == hello->body.hello.token) {
        return true;
    }
    if (got) {
        drop(wire);
    }
    return false;
}

// All attempts at once; the first that is answered stays in wires[result], -1 when none is.
static int race(ts_watch_wire *wires, int count, const ts_watch_frame *hello) {
    const double end = ts_clock_seconds() + patience;
    struct pollfd polled[TS_WATCH_ADDRESSES];
    for (int open = count; open > 0 && ts_clock_seconds() < end;) {
        for (int i = 0; i < count; i++) {
            const short out = wires[i].out.type == 0 || wires[i].left ? POLLOUT : 0;
            polled[i] = (struct pollfd){.fd = wires[i].fd, .events = (short)(POLLIN | out)};
        }
        if (poll(polled, (nfds_t)count, 100) < 0 && errno != EINTR) {
            break;
        }
        open = 0;
        for (int i = 0; i < count; i++) {
            if (wires[i].fd >= 0 && go_on(&wires[i], polled[i].revents, hello)) {
                return i;
            }
            open += wires[i].fd >= 0;
        }
    }
    return -1;
}

static int unreachable(const ts_watch_invitation *invitation, const char *host) {
    char list[512] = "";
    for (int i = 0, used = 0; i < invitation->count && used < 400; i++) {
        char text[INET6_ADDRSTRLEN];
        used += snprintf(list + used, sizeof list - (size_t)used, "%s%s", i ? ", " : "",
                         address_text(&invitation->address[i], text));
    }
    return TS_FAIL(TS_EPEER,
                   "host %s does not reach the watch of rank 0 at %s; open the network between them, name another with "
                   "watch.network, or set watch.timeout to 0",
                   host, list);
}

int ts_watch_join(ts_watch_wire *out, const ts_watch_invitation *invitation, int rank, const char *host) {
    const int count = invitation->count;
    ts_watch_frame hello = {.body.hello = {.token = invitation->token, .rank = rank}};
    snprintf(hello.body.hello.host, sizeof hello.body.hello.host, "%s", host);
    ts_watch_wire *wires = ts_calloc((size_t)count, sizeof *wires);
    if (!wires) {
        return TS_ERESOURCE;
    }
    for (int i = 0; i < count; i++) {
        start_connecting(&wires[i], &invitation->address[i]);
    }
    const int winner = race(wires, count, &hello);
    for (int i = 0; i < count; i++) {
        if (i != winner && wires[i].fd >= 0) {
            drop(&wires[i]);
        }
    }
    if (winner >= 0) {
        *out = wires[winner];
    }
    free(wires);
    return winner >= 0 ? TS_OK : unreachable(invitation, host);
}

// ---- messages

enum { HEAD_BYTES = 2 * sizeof(uint32_t) };

size_t ts_watch_pulse_bytes(const ts_watch_pulse *pulse) {
    return offsetof(ts_watch_pulse, line) + (size_t)pulse->lines * sizeof pulse->line[0];
}

void ts_watch_flush(ts_watch_wire *wire) {
    while (wire->left) {
        const char *const from = (const char *)&wire->out + wire->out_bytes - wire->left;
        const ssize_t sent = send(wire->fd, from, wire->left, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0) {
            wire->left = errno == EAGAIN || errno == EINTR ? wire->left : 0;  // a broken one shows when it is read
            return;
        }
        wire->left -= (size_t)sent;
    }
}

void ts_watch_send(ts_watch_wire *wire, ts_watch_type type, const void *body, size_t bytes) {
    ts_watch_flush(wire);
    if (wire->left) {
        return;
    }
    wire->out.type = type;
    wire->out.bytes = (uint32_t)bytes;
    if (bytes) {
        memcpy(&wire->out.body, body, bytes);
    }
    wire->out_bytes = wire->left = HEAD_BYTES + bytes;
    ts_watch_flush(wire);
}

// Terminates texts and bounds numbers that are used as indices; false when the message makes no sense.
static bool is_sound(ts_watch_frame *frame) {
    if (frame->type == TS_WATCH_HELLO) {
        frame->body.hello.host[TS_WATCH_HOST_BYTES - 1] = '\0';
        ts_make_one_line(frame->body.hello.host);
        return frame->bytes == sizeof frame->body.hello;
    }
    if (frame->type != TS_WATCH_PULSE) {
        return frame->type <= TS_WATCH_OVER;
    }
    ts_watch_pulse *const pulse = &frame->body.pulse;
    if (frame->bytes < offsetof(ts_watch_pulse, line) || pulse->lines < 0 || pulse->lines > TS_WATCH_LINES ||
        frame->bytes != ts_watch_pulse_bytes(pulse)) {
        return false;
    }
    pulse->name[TS_WATCH_NAME_BYTES - 1] = pulse->note[TS_WATCH_NOTE_BYTES - 1] = '\0';
    for (int i = 0; i < pulse->lines; i++) {
        pulse->line[i].name[TS_WATCH_NAME_BYTES - 1] = '\0';
    }
    return true;
}

int ts_watch_receive(ts_watch_wire *wire) {
    for (;;) {
        const size_t body = wire->got < HEAD_BYTES ? 0 : wire->in.bytes, whole = HEAD_BYTES + body;
        if (body > sizeof wire->in.body) {
            return -1;
        }
        if (wire->got == whole) {
            wire->got = 0;  // the next one overwrites it
            return is_sound(&wire->in) ? 1 : -1;
        }
        const ssize_t got = recv(wire->fd, (char *)&wire->in + wire->got, whole - wire->got, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) {
            return -1;
        }
        if (got < 0) {
            return 0;
        }
        wire->got += (size_t)got;
    }
}
