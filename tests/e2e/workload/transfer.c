#define _GNU_SOURCE
#include "transfer.h"

#include "endpoint.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __GLIBC__
/* glibc exports these and declares them only under _FORTIFY_SOURCE. */
ssize_t __read_chk(int fd, void *buffer, size_t len, size_t buffer_len);
ssize_t __recv_chk(int fd, void *buffer, size_t len, size_t buffer_len, int flags);
ssize_t __recvfrom_chk(int fd, void *buffer, size_t len, size_t buffer_len, int flags, struct sockaddr *addr,
                       socklen_t *addr_len);
#endif

static size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

/* Accounts for the first `moved` bytes of scattered memory. */
static void moved_vector(const struct conn *conn, const char *direction, const char *call, const struct iovec *iov,
                         size_t count, ssize_t moved) {
    if (moved < 0) return;
    char *flat = malloc(moved + 1), *at = flat;
    size_t left = moved;
    for (size_t i = 0; i < count && left; i++) {
        size_t len = smaller(iov[i].iov_len, left);
        memcpy(at, iov[i].iov_base, len);
        at += len;
        left -= len;
    }
    truth_moved(conn, direction, call, flat, moved);
    free(flat);
}

ssize_t send_on(const struct conn *to, const void *bytes, size_t len, int flags) {
    ssize_t moved = send(to->fd, bytes, len, flags);
    truth_moved(to, "out", "send", bytes, moved);
    return moved;
}

ssize_t sendto_on(const struct conn *to, const void *bytes, size_t len, const struct sockaddr *addr,
                  socklen_t addr_len) {
    ssize_t moved = sendto(to->fd, bytes, len, 0, addr, addr_len);
    truth_moved(to, "out", "sendto", bytes, moved);
    return moved;
}

ssize_t sendmsg_on(const struct conn *to, const struct msghdr *message, int flags) {
    ssize_t moved = sendmsg(to->fd, message, flags);
    moved_vector(to, "out", "sendmsg", message->msg_iov, message->msg_iovlen, moved);
    return moved;
}

ssize_t write_on(const struct conn *to, const void *bytes, size_t len) {
    ssize_t moved = write(to->fd, bytes, len);
    truth_moved(to, "out", "write", bytes, moved);
    return moved;
}

ssize_t writev_on(const struct conn *to, const struct iovec *iov, int count) {
    ssize_t moved = writev(to->fd, iov, count);
    moved_vector(to, "out", "writev", iov, count, moved);
    return moved;
}

/* A peek moves nothing, and with MSG_TRUNC the result is the datagram's length, not what the buffer got. */
static void received(const struct conn *from, const char *call, const void *buffer, size_t len, int flags,
                     ssize_t result) {
    if (flags & MSG_PEEK || result < 0) return;
    truth_moved(from, "in", call, buffer, smaller(result, len));
}

ssize_t recv_on(const struct conn *from, void *buffer, size_t len, int flags) {
    ssize_t result = recv(from->fd, buffer, len, flags);
    received(from, "recv", buffer, len, flags, result);
    return result;
}

ssize_t recvfrom_on(const struct conn *from, void *buffer, size_t len, struct sockaddr *addr, socklen_t *addr_len) {
    ssize_t result = recvfrom(from->fd, buffer, len, 0, addr, addr_len);
    received(from, "recvfrom", buffer, len, 0, result);
    return result;
}

ssize_t recvmsg_on(const struct conn *from, struct msghdr *message, int flags) {
    ssize_t result = recvmsg(from->fd, message, flags);
    if (!(flags & MSG_PEEK)) moved_vector(from, "in", "recvmsg", message->msg_iov, message->msg_iovlen, result);
    return result;
}

ssize_t read_on(const struct conn *from, void *buffer, size_t len) {
    ssize_t result = read(from->fd, buffer, len);
    received(from, "read", buffer, len, 0, result);
    return result;
}

ssize_t readv_on(const struct conn *from, const struct iovec *iov, int count) {
    ssize_t result = readv(from->fd, iov, count);
    moved_vector(from, "in", "readv", iov, count, result);
    return result;
}

#ifdef __GLIBC__
ssize_t read_chk_on(const struct conn *from, void *buffer, size_t len) {
    ssize_t result = __read_chk(from->fd, buffer, len, len);
    received(from, "__read_chk", buffer, len, 0, result);
    return result;
}

ssize_t recv_chk_on(const struct conn *from, void *buffer, size_t len) {
    ssize_t result = __recv_chk(from->fd, buffer, len, len, 0);
    received(from, "__recv_chk", buffer, len, 0, result);
    return result;
}

ssize_t recvfrom_chk_on(const struct conn *from, void *buffer, size_t len) {
    ssize_t result = __recvfrom_chk(from->fd, buffer, len, len, 0, NULL, NULL);
    received(from, "__recvfrom_chk", buffer, len, 0, result);
    return result;
}
#else
ssize_t read_chk_on(const struct conn *from, void *buffer, size_t len) {
    return read_on(from, buffer, len);
}

ssize_t recv_chk_on(const struct conn *from, void *buffer, size_t len) {
    return recv_on(from, buffer, len, 0);
}

ssize_t recvfrom_chk_on(const struct conn *from, void *buffer, size_t len) {
    return recvfrom_on(from, buffer, len, NULL, NULL);
}
#endif

void exchange(const struct conn *from, const struct conn *to, size_t len) {
    char sent[len], got[len];
    fill(sent, len);
    MUST(send_on(from, sent, len, 0));
    for (size_t have = 0; have < len;) {
        ssize_t n = MUST(recv_on(to, got + have, len - have, 0));
        if (n == 0) break;
        have += n;
    }
    CHECK(memcmp(sent, got, len) == 0);
}
