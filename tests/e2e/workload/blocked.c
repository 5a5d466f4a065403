/* One thread that waits in a call while the agent arrives, and is interrupted by a signal before the call ends.
 *
 * The kernel goes back to the system call's instruction then (SA_RESTART, signal(7)): it must still be there. */
#define _GNU_SOURCE
#include "cases.h"
#include "endpoint.h"

#include <signal.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum { SENT_BY_TEST = 5, LARGE = 1 << 20 };

static void interrupt(int signal) {
    (void)signal;
}

static int ready_to_block(const char *name) {
    struct sigaction action = {.sa_handler = interrupt, .sa_flags = SA_RESTART};
    MUST(sigaction(SIGUSR1, &action, NULL));
    struct address address = address_in_dir(name);
    return listen_at(&address, SOCK_STREAM);
}

/* Accepts the test's connection, to which the test sends SENT_BY_TEST bytes once the call waits. */
static int connected(void) {
    int listener = ready_to_block("blocked");
    int fd = MUST(accept(listener, NULL, NULL));
    truth_note("waiting", 0);
    return fd;
}

void case_blocked_accept(void) {
    int listener = ready_to_block("blocked");
    truth_note("waiting", 0);
    int fd = MUST(accept(listener, NULL, NULL));
    char buffer[SENT_BY_TEST];
    CHECK(recv(fd, buffer, sizeof buffer, MSG_WAITALL) == SENT_BY_TEST);
}

void case_blocked_read(void) {
    char buffer[100];
    CHECK(read(connected(), buffer, sizeof buffer) == SENT_BY_TEST);
}

void case_blocked_recv(void) {
    char buffer[100];
    CHECK(recv(connected(), buffer, sizeof buffer, 0) == SENT_BY_TEST);
}

void case_blocked_readv(void) {
    char buffer[100];
    CHECK(readv(connected(), &(struct iovec){buffer, sizeof buffer}, 1) == SENT_BY_TEST);
}

void case_blocked_recvmsg(void) {
    char buffer[100];
    struct iovec iov = {buffer, sizeof buffer};
    CHECK(recvmsg(connected(), &(struct msghdr){.msg_iov = &iov, .msg_iovlen = 1}, 0) == SENT_BY_TEST);
}

/* Nothing has moved when it is interrupted, so it begins again. */
static int full(void) {
    static char bytes[LARGE];
    int listener = ready_to_block("blocked");
    int fd = MUST(accept(listener, NULL, NULL));
    while (send(fd, bytes, sizeof bytes, MSG_DONTWAIT) > 0) {}
    truth_note("waiting", 0);
    return fd;
}

void case_blocked_write(void) {
    CHECK(write(full(), "12345", 5) == 5);
}

void case_blocked_sendmsg(void) {
    struct iovec iov = {"12345", 5};
    CHECK(sendmsg(full(), &(struct msghdr){.msg_iov = &iov, .msg_iovlen = 1}, 0) == 5);
}
