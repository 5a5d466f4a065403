/* Descriptors: several for one connection, and one number for several things, one after the other. */
#define _GNU_SOURCE
#include "cases.h"
#include "endpoint.h"
#include "transfer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* A system call that no hook on libc sees, syscall(2) included. */
static long behind_libc(long number, long a, long b, long c) {
#if defined __x86_64__
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
#elif defined __aarch64__
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
    return x0;
#else
#error "the workload knows no system calls on this architecture"
#endif
}

static struct conn by_descriptor(const struct conn *conn, int fd) {
    struct conn copy = *conn;
    copy.fd = fd;
    return copy;
}

/* The copies speak for one connection, which ends with the last of them. */
void case_dups(void) {
    struct ends ends = connect_ends("dups", SOCK_STREAM);
    int copies[6];
    copies[0] = MUST(dup(ends.client.fd));
    copies[1] = MUST(dup2(ends.client.fd, 60));
    copies[2] = MUST(dup3(ends.client.fd, 61, O_CLOEXEC));
    copies[3] = MUST(fcntl(ends.client.fd, F_DUPFD, 62));
    copies[4] = MUST(fcntl(ends.client.fd, F_DUPFD_CLOEXEC, 62));
    copies[5] = MUST(dup2(ends.client.fd, ends.client.fd));
    CHECK(fcntl(copies[2], F_GETFD) == FD_CLOEXEC && fcntl(copies[4], F_GETFD) == FD_CLOEXEC);
    CHECK(fcntl(copies[3], F_GETFD) == 0 && copies[3] >= 62);
    CHECK(copies[5] == ends.client.fd);
    MUST(close(ends.client.fd));
    for (int i = 0; i < 5; i++) {
        struct conn copy = by_descriptor(&ends.client, copies[i]);
        exchange(&copy, &ends.server, 30 + (size_t)i);
        exchange(&ends.server, &copy, 40 + (size_t)i);
        if (i < 4) MUST(close(copies[i]));
    }
    ends.client.fd = copies[4];
    close_ends(&ends);
}

/* dup2 and dup3 close what their target was. */
void case_dup_over(void) {
    struct ends first = connect_ends("dup_over.a", SOCK_STREAM), second = connect_ends("dup_over.b", SOCK_STREAM);
    exchange(&first.client, &first.server, 11);
    exchange(&second.client, &second.server, 12);
    MUST(dup2(second.client.fd, first.client.fd));
    truth_close(&first.client, "dup2");
    struct conn copy = by_descriptor(&second.client, first.client.fd);
    exchange(&copy, &second.server, 13);
    close_conn(&first.server);

    int null = MUST(open("/dev/null", O_RDWR));
    MUST(close(second.client.fd));
    MUST(dup3(null, copy.fd, O_CLOEXEC));
    truth_close(&second.client, "dup3");
    CHECK(write(copy.fd, "for nobody", 10) == 10);
    MUST(close(copy.fd));
    MUST(close(null));
    close_conn(&second.server);
}

/* Moves bytes over whatever two descriptors are now, none of them a socket. */
static void move_elsewhere(int reader, int writer) {
    char sent[64], got[64];
    struct iovec iov = {got, sizeof got};
    fill(sent, sizeof sent);
    CHECK(write(writer, sent, sizeof sent) == sizeof sent);
    CHECK(read(reader, got, sizeof got) == sizeof got);
    CHECK(memcmp(sent, got, sizeof got) == 0);
    CHECK(writev(writer, &iov, 1) == sizeof sent);
    CHECK(readv(reader, &iov, 1) == sizeof sent);
}

/* Makes a pipe with `reader` and `writer` as its numbers by means of dup2, as shells do. */
static void pipe_at(int reader, int writer) {
    int ends[2];
    MUST(pipe(ends));
    MUST(dup2(ends[0], reader));
    MUST(dup2(ends[1], writer));
    MUST(close(ends[0]));
    MUST(close(ends[1]));
}

/* A number closed and given out again, each time for something else. */
void case_reused_number(void) {
    struct ends ends = connect_ends("reused.a", SOCK_STREAM);
    struct conn first = ends.client;
    exchange(&ends.client, &ends.server, 21);
    close_ends(&ends);

    int pipe_ends[2];
    MUST(pipe(pipe_ends));
    CHECK(pipe_ends[0] <= first.fd || pipe_ends[1] <= first.fd);
    move_elsewhere(pipe_ends[0], pipe_ends[1]);
    MUST(close(pipe_ends[0]));
    MUST(close(pipe_ends[1]));

    char name[sizeof(struct sockaddr_un)];
    memcpy(name, address_in_dir("reused.file").un.sun_path, sizeof((struct sockaddr_un *)0)->sun_path);
    int file = MUST(open(name, O_RDWR | O_CREAT, 0600));
    CHECK(write(file, "a file", 6) == 6);
    MUST(close(file));

    ends = connect_ends("reused.b", SOCK_STREAM);
    exchange(&ends.client, &ends.server, 22);
    exchange(&ends.server, &ends.client, 23);
    close_ends(&ends);

    ends = connect_ends("reused.c", SOCK_STREAM);
    exchange(&ends.client, &ends.server, 24);
    pipe_at(ends.client.fd, ends.server.fd);
    truth_close(&ends.client, "dup2");
    truth_close(&ends.server, "dup2");
    move_elsewhere(ends.client.fd, ends.server.fd);
    MUST(close(ends.client.fd));
    MUST(close(ends.server.fd));
}

/* Closed by a system call that libc does not see: what the numbers are next is nobody's connection. */
void case_closed_behind_libc(void) {
    struct ends ends = connect_ends("behind.a", SOCK_STREAM);
    exchange(&ends.client, &ends.server, 31);
    CHECK(behind_libc(SYS_close, ends.client.fd, 0, 0) == 0);
    CHECK(behind_libc(SYS_close, ends.server.fd, 0, 0) == 0);
    int pipe_ends[2];
    MUST(pipe(pipe_ends));
    move_elsewhere(pipe_ends[0], pipe_ends[1]);
    MUST(close(pipe_ends[0]));
    MUST(close(pipe_ends[1]));

    /* A pipe laid over both numbers in one go, reading end over the socket that was written to. */
    ends = connect_ends("behind.b", SOCK_STREAM);
    exchange(&ends.client, &ends.server, 32);
    MUST(pipe(pipe_ends));
    CHECK(behind_libc(SYS_dup3, pipe_ends[0], ends.client.fd, 0) == ends.client.fd);
    CHECK(behind_libc(SYS_dup3, pipe_ends[1], ends.server.fd, 0) == ends.server.fd);
    move_elsewhere(ends.client.fd, ends.server.fd);
    MUST(close(pipe_ends[0]));
    MUST(close(pipe_ends[1]));
    MUST(close(ends.client.fd));
    MUST(close(ends.server.fd));

    /* Another connection takes the numbers over. */
    ends = connect_ends("behind.c", SOCK_STREAM);
    exchange(&ends.client, &ends.server, 33);
    CHECK(behind_libc(SYS_close, ends.client.fd, 0, 0) == 0);
    CHECK(behind_libc(SYS_close, ends.server.fd, 0, 0) == 0);
    struct ends others = connect_ends("behind.d", SOCK_STREAM);
    exchange(&others.client, &others.server, 34);
    exchange(&others.server, &others.client, 35);
    close_ends(&others);
}

/* A copy's number becomes a pipe behind libc's back, while the connection it was a copy of is in use. */
void case_copy_closed_behind_libc(void) {
    enum { LONG_NS = 50000000 }; /* several times as long as a descriptor may go without being looked at */
    struct ends ends = connect_ends("behind.copy", SOCK_STREAM);
    struct conn copy = by_descriptor(&ends.client, MUST(dup(ends.client.fd)));
    exchange(&copy, &ends.server, 36);
    int pipe_ends[2];
    MUST(pipe(pipe_ends));
    CHECK(behind_libc(SYS_dup3, pipe_ends[0], copy.fd, 0) == copy.fd);
    struct timespec start, now;
    MUST(clock_gettime(CLOCK_MONOTONIC, &start));
    do {
        exchange(&ends.client, &ends.server, 37);
        exchange(&ends.server, &ends.client, 38);
        MUST(clock_gettime(CLOCK_MONOTONIC, &now));
    } while ((now.tv_sec - start.tv_sec) * 1000000000L + now.tv_nsec - start.tv_nsec < LONG_NS);
    move_elsewhere(copy.fd, pipe_ends[1]);
    MUST(close(copy.fd));
    MUST(close(pipe_ends[0]));
    MUST(close(pipe_ends[1]));
    close_ends(&ends);
}

static void traffic_after_closing_all(const char *name) {
    truth_begin_again(); /* its descriptor was among the closed */
    struct ends ends = connect_ends(name, SOCK_STREAM);
    exchange(&ends.client, &ends.server, 41);
    exchange(&ends.server, &ends.client, 42);
    close_ends(&ends);
}

/* Ends the program by itself. Frida's own threads are gone with their descriptors, and exit(3) under Frida waits for
 * them. */
static void end(void) {
    truth_note("end", truth_failures());
    behind_libc(SYS_exit_group, truth_failures() != 0, 0, 0);
}

/* What daemons do first: close whatever they may have inherited, ours and the tracer's own included. */
void case_close_all(void) {
    struct ends ends = connect_ends("close_all.a", SOCK_STREAM);
    exchange(&ends.client, &ends.server, 43);
    truth_close(&ends.client, "close");
    truth_close(&ends.server, "close");
    for (int fd = 3; fd < 1024; fd++) close(fd);
    traffic_after_closing_all("close_all.b");
    for (int fd = 3; fd < 1024; fd++) close(fd);
    traffic_after_closing_all("close_all.c");
    end();
}

void case_close_all_by_range(void) {
    struct ends ends = connect_ends("close_range.a", SOCK_STREAM);
    exchange(&ends.client, &ends.server, 44);
    truth_close(&ends.client, "close_range");
    truth_close(&ends.server, "close_range");
#ifdef __GLIBC__
    MUST(close_range(3, ~0u, 0));
#else
    MUST(behind_libc(SYS_close_range, 3, ~0u, 0));
#endif
    traffic_after_closing_all("close_range.b");
    end();
}

/* With every number taken, calls fail and succeed as they would untraced. */
void case_descriptors_full(void) {
    enum { LIMIT = 100 };
    static int taken[LIMIT];
    int count = 0;
    struct ends before = connect_ends("full.a", SOCK_STREAM);
    struct address address = address_in_dir("full.b");
    int listener = listen_at(&address, SOCK_STREAM);
    struct conn waiting = connect_to(&address, SOCK_STREAM);
    struct rlimit limit;
    MUST(getrlimit(RLIMIT_NOFILE, &limit));
    rlim_t previous = limit.rlim_cur;
    limit.rlim_cur = LIMIT;
    MUST(setrlimit(RLIMIT_NOFILE, &limit));
    while (count < LIMIT && (taken[count] = open("/dev/null", O_RDWR)) >= 0) count++;
    CHECK(count < LIMIT && errno == EMFILE);
    truth_note("descriptors left", count);

    exchange(&before.client, &before.server, 51);
#define FAILS_FULL(call) (errno = 0, CHECK((call) == -1), CHECK(errno == EMFILE))
    FAILS_FULL(socket(AF_UNIX, SOCK_STREAM, 0));
    FAILS_FULL(accept(listener, NULL, NULL));
    FAILS_FULL(accept4(listener, NULL, NULL, SOCK_CLOEXEC));
    FAILS_FULL(dup(before.client.fd));
    FAILS_FULL(fcntl(before.client.fd, F_DUPFD, 3));
#undef FAILS_FULL
    CHECK(dup2(before.client.fd, taken[0]) == taken[0]);
    struct conn copy = by_descriptor(&before.client, taken[0]);
    exchange(&copy, &before.server, 52);

    MUST(close(taken[--count]));
    struct conn server = accept_from(listener, &address);
    CHECK(server.fd == taken[count]);
    exchange(&waiting, &server, 53);
    exchange(&server, &waiting, 54);
    MUST(close(listener));
    struct conn unused = conn_of(MUST(socket(AF_UNIX, SOCK_STREAM, 0)), SOCK_STREAM);
    MUST(close(unused.fd));

    while (count > 0) MUST(close(taken[--count]));
    limit.rlim_cur = previous;
    MUST(setrlimit(RLIMIT_NOFILE, &limit));
    exchange(&before.client, &before.server, 55);
    close_ends(&before);
    close_conn(&waiting);
    close_conn(&server);
}

/* Sockets with high numbers: made there, moved there, and closed there. The hard limit says how high they can be. */
void case_high_descriptors(void) {
    struct rlimit limit;
    /* As high as the kernel allows by default, for root; otherwise as high as the hard limit. */
    struct rlimit highest = {1048576, 1048576};
    setrlimit(RLIMIT_NOFILE, &highest);
    MUST(getrlimit(RLIMIT_NOFILE, &limit));
    limit.rlim_cur = limit.rlim_max;
    MUST(setrlimit(RLIMIT_NOFILE, &limit));
    static const int numbers[] = {4095, 4096, 4097, 8191, 65536, 100000, 524287, 1048575};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers && (rlim_t)numbers[i] < limit.rlim_cur; i++) {
        char name[32];
        snprintf(name, sizeof name, "high.%d", numbers[i]);
        struct ends ends = connect_ends(name, SOCK_STREAM);
        exchange(&ends.client, &ends.server, 20 + i);
        MUST(dup2(ends.client.fd, numbers[i]));
        MUST(close(ends.client.fd));
        ends.client.fd = numbers[i];
        exchange(&ends.client, &ends.server, 40 + i);
        exchange(&ends.server, &ends.client, 60 + i);
        close_ends(&ends);
    }
    /* Made by calls that take the lowest free number, because all that are lower are taken. */
    int null = MUST(open("/dev/null", O_RDONLY));
    for (int fd = null; fd < 4200 && (rlim_t)fd + 50 < limit.rlim_cur;) fd = MUST(fcntl(null, F_DUPFD, 0));
    struct ends ends = connect_ends("high_descriptors.made", SOCK_STREAM);
    CHECK(ends.client.fd > 4200 || limit.rlim_cur < 4300);
    exchange(&ends.client, &ends.server, 80);
    exchange(&ends.server, &ends.client, 81);
    close_ends(&ends);
    truth_note("highest", (long long)limit.rlim_cur - 1);
}
