/* Streams: every call, and what a call moves when that is not what it was asked to move. */
#define _GNU_SOURCE
#include "cases.h"
#include "endpoint.h"
#include "transfer.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static ssize_t sendmsg_flat(const struct conn *to, void *bytes, size_t len) {
    struct iovec iov = {bytes, len};
    return sendmsg_on(to, &(struct msghdr){.msg_iov = &iov, .msg_iovlen = 1}, 0);
}

static ssize_t recvmsg_flat(const struct conn *from, void *buffer, size_t len) {
    struct iovec iov = {buffer, len};
    return recvmsg_on(from, &(struct msghdr){.msg_iov = &iov, .msg_iovlen = 1}, 0);
}

static ssize_t sent_by(int call, const struct conn *to, void *bytes, size_t len) {
    switch (call) {
    case 0: return send_on(to, bytes, len, 0);
    case 1: return sendto_on(to, bytes, len, NULL, 0);
    case 2: return sendmsg_flat(to, bytes, len);
    case 3: return write_on(to, bytes, len);
    default: return writev_on(to, &(struct iovec){bytes, len}, 1);
    }
}

static ssize_t received_by(int call, const struct conn *from, void *buffer, size_t len) {
    switch (call) {
    case 0: return recv_on(from, buffer, len, 0);
    case 1: return recvfrom_on(from, buffer, len, NULL, NULL);
    case 2: return recvmsg_flat(from, buffer, len);
    case 3: return read_on(from, buffer, len);
    case 4: return readv_on(from, &(struct iovec){buffer, len}, 1);
    case 5: return read_chk_on(from, buffer, len);
    case 6: return recv_chk_on(from, buffer, len);
    default: return recvfrom_chk_on(from, buffer, len);
    }
}

/* Each way to send met by each way to receive, there and back. */
static void every_call_on(const struct ends *ends) {
    for (int out = 0; out < 5; out++) {
        for (int in = 0; in < 8; in++) {
            char sent[64], got[64];
            size_t len = 10 + 8 * (size_t)out + (size_t)in;
            fill(sent, len);
            CHECK(sent_by(out, &ends->client, sent, len) == (ssize_t)len);
            CHECK(received_by(in, &ends->server, got, sizeof got) == (ssize_t)len);
            CHECK(memcmp(sent, got, len) == 0);
            fill(sent, len);
            CHECK(sent_by(out, &ends->server, sent, len) == (ssize_t)len);
            CHECK(received_by(in, &ends->client, got, sizeof got) == (ssize_t)len);
            CHECK(memcmp(sent, got, len) == 0);
        }
    }
}

void case_calls(void) {
    struct address address = address_in_dir("calls");
    int listener = listen_at(&address, SOCK_STREAM);
    struct ends ends;

    ends.client = connect_to(&address, SOCK_STREAM);
    ends.server = accept_from(listener, &address);
    every_call_on(&ends);
    close_ends(&ends);

    ends.client = connect_to(&address, SOCK_STREAM | SOCK_CLOEXEC);
    ends.server = accept4_from(listener, &address, SOCK_CLOEXEC);
    CHECK(fcntl(ends.server.fd, F_GETFD) == FD_CLOEXEC);
    every_call_on(&ends);
    close_ends(&ends);

    MUST(close(listener));
}

void case_seqpacket(void) {
    struct ends ends = connect_ends("seqpacket", SOCK_SEQPACKET);
    every_call_on(&ends);
    close_ends(&ends);
}

/* Cuts `len` bytes at `base` into `count` pieces, some of them empty. */
static void cut(struct iovec *iov, int count, char *base, size_t len) {
    size_t at = 0;
    for (int i = 0; i < count; i++) {
        size_t piece = i == count - 1 ? len - at : (size_t)(i % 3) * (len / (size_t)count / 2);
        iov[i] = (struct iovec){piece ? base + at : NULL, piece};
        at += piece;
    }
}

void case_scattered(void) {
    static const int COUNTS[] = {1, 2, 15, 16, 17, 40, 1024};
    static char sent[20000], got[20000];
    static struct iovec out[1024], in[1024];
    struct ends ends = connect_ends("scattered", SOCK_STREAM);
    for (size_t i = 0; i < sizeof COUNTS / sizeof *COUNTS; i++) {
        int count = COUNTS[i];
        fill(sent, sizeof sent);
        cut(out, count, sent, sizeof sent);
        cut(in, count, got, sizeof got);
        CHECK(writev_on(&ends.client, out, count) == sizeof sent);
        CHECK(readv_on(&ends.server, in, count) == sizeof sent);
        CHECK(memcmp(sent, got, sizeof sent) == 0);
        struct msghdr message = {.msg_iov = out, .msg_iovlen = (size_t)count};
        CHECK(sendmsg_on(&ends.server, &message, 0) == sizeof sent);
        message.msg_iov = in;
        memset(got, 0, sizeof got);
        CHECK(recvmsg_on(&ends.client, &message, 0) == sizeof sent);
        CHECK(memcmp(sent, got, sizeof sent) == 0);
        /* Fewer bytes than the pieces have room for. */
        CHECK(send_on(&ends.client, sent, 777, 0) == 777);
        CHECK(readv_on(&ends.server, in, count) == 777);
        CHECK(send_on(&ends.client, sent, 778, 0) == 778);
        CHECK(recvmsg_on(&ends.server, &message, 0) == 778);
    }
    close_ends(&ends);
}

enum { LARGE = 300 * 1024 };

static void *send_large(void *client) {
    char *bytes = malloc(LARGE);
    for (int call = 0; call < 5; call++) {
        fill(bytes, LARGE);
        CHECK(sent_by(call, client, bytes, LARGE) == LARGE);
    }
    free(bytes);
    return NULL;
}

void case_large(void) {
    struct ends ends = connect_ends("large", SOCK_STREAM);
    char *buffer = malloc(LARGE);
    pthread_t sender;
    MUST(-pthread_create(&sender, NULL, send_large, &ends.client));
    CHECK(recv_on(&ends.server, buffer, LARGE, MSG_WAITALL) == LARGE);
    CHECK(recv_on(&ends.server, buffer, 100000, MSG_WAITALL) == 100000);
    size_t left = 4 * LARGE - 100000;
    for (int call = 0; left > 0; call++) {
        size_t want = call % 2 ? 1000 : LARGE;
        ssize_t n = received_by(call % 8, &ends.server, buffer, want < left ? want : left);
        if (MUST(n) == 0) break;
        left -= (size_t)n;
    }
    CHECK(left == 0);
    MUST(-pthread_join(sender, NULL));
    free(buffer);
    close_ends(&ends);
}

void case_peek(void) {
    char sent[100], got[100];
    struct ends ends = connect_ends("peek", SOCK_STREAM);
    fill(sent, sizeof sent);
    CHECK(send_on(&ends.client, sent, sizeof sent, 0) == sizeof sent);
    CHECK(recv_on(&ends.server, got, 40, MSG_PEEK) == 40);
    CHECK(recvfrom(ends.server.fd, got, sizeof got, MSG_PEEK | MSG_DONTWAIT, NULL, NULL) == sizeof got);
    struct iovec iov = {got, sizeof got};
    CHECK(recvmsg_on(&ends.server, &(struct msghdr){.msg_iov = &iov, .msg_iovlen = 1}, MSG_PEEK) == sizeof got);
    CHECK(recv_on(&ends.server, got, 30, 0) == 30);
    CHECK(recv_on(&ends.server, got, sizeof got, MSG_PEEK) == 70);
    CHECK(recv_on(&ends.server, got, sizeof got, 0) == 70);
    CHECK(memcmp(got, sent + 30, 70) == 0);
    close_ends(&ends);
}

/* A full buffer takes less than it is given, and then nothing. */
void case_partial(void) {
    static char bytes[150000], got[150000];
    struct ends ends = connect_ends("partial", SOCK_STREAM);
    CHECK(fcntl(ends.client.fd, F_SETFL, fcntl(ends.client.fd, F_GETFL) | O_NONBLOCK) == 0);
    size_t moved = 0, short_sends = 0;
    for (int call = 0;; call++) {
        fill(bytes, sizeof bytes);
        ssize_t n = sent_by(call % 5, &ends.client, bytes, sizeof bytes);
        if (n < 0) break;
        moved += (size_t)n;
        short_sends += n < (ssize_t)sizeof bytes;
    }
    CHECK(errno == EAGAIN);
    CHECK(short_sends > 0);
    while (moved > 0) {
        ssize_t n = MUST(recv_on(&ends.server, got, 1 + sizeof got / 3, 0));
        if (n == 0) break;
        moved -= (size_t)n;
    }
    CHECK(moved == 0);
    close_ends(&ends);
}

/* On a stream nothing is no message. */
void case_zero(void) {
    char buffer[8];
    struct ends ends = connect_ends("zero", SOCK_STREAM);
    CHECK(send_on(&ends.client, "", 0, 0) == 0);
    CHECK(send_on(&ends.client, NULL, 0, 0) == 0);
    CHECK(write_on(&ends.client, NULL, 0) == 0);
    CHECK(writev_on(&ends.client, NULL, 0) == 0);
    CHECK(recv_on(&ends.server, buffer, 0, MSG_DONTWAIT) <= 0);
    exchange(&ends.client, &ends.server, 5);
    close_conn(&ends.client);
    CHECK(recv_on(&ends.server, buffer, sizeof buffer, 0) == 0);
    CHECK(read_on(&ends.server, buffer, sizeof buffer) == 0);
    close_conn(&ends.server);
}

void case_half_close(void) {
    char buffer[8];
    struct ends ends = connect_ends("half_close", SOCK_STREAM);
    exchange(&ends.client, &ends.server, 33);
    CHECK(shutdown(ends.client.fd, SHUT_WR) == 0);
    CHECK(recv_on(&ends.server, buffer, sizeof buffer, 0) == 0);
    exchange(&ends.server, &ends.client, 44);
    CHECK(shutdown(ends.server.fd, SHUT_RDWR) == 0);
    CHECK(recv_on(&ends.client, buffer, sizeof buffer, 0) == 0);
    close_ends(&ends);
}

/* A call that succeeds leaves errno as it was, as the kernel's does. */
void case_errno_kept(void) {
    char bytes[24] = "errno", got[24];
    struct address address = address_in_dir("errno_kept");
    struct ends ends;
#define KEEPS(call) (errno = 1234, MUST(call), CHECK(errno == 1234))
    int listener = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    KEEPS(bind(listener, (struct sockaddr *)&address.un, address.len));
    KEEPS(listen(listener, 8));
    truth_listen(listener, "listen", address.expected);
    KEEPS((ends.client = connect_to(&address, SOCK_STREAM)).fd);
    KEEPS((ends.server = accept_from(listener, &address)).fd);
    KEEPS(close(listener));
    for (int call = 0; call < 8; call++) {
        KEEPS(sent_by(call % 5, &ends.client, bytes, sizeof bytes));
        KEEPS(received_by(call, &ends.server, got, sizeof got));
    }
    int copy;
    KEEPS(copy = dup(ends.client.fd));
    KEEPS(dup2(ends.client.fd, copy));
    KEEPS(dup3(ends.client.fd, copy, O_CLOEXEC));
    KEEPS(close(copy));
    KEEPS(copy = fcntl(ends.client.fd, F_DUPFD, 10));
    KEEPS(close(copy));
    KEEPS(shutdown(ends.client.fd, SHUT_WR));
#undef KEEPS
    close_ends(&ends);
}
