/* Processes: children with and without a program of their own, and sudden ends. */
#define _GNU_SOURCE
#include "cases.h"
#include "endpoint.h"
#include "transfer.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int status_of(pid_t child) {
    int status;
    MUST(waitpid(child, &status, 0));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* A child goes on with an inherited connection and opens some of its own. */
void case_forked(void) {
    struct ends ends = connect_ends("forked.inherited", SOCK_STREAM);
    exchange(&ends.client, &ends.server, 71);
    for (int round = 0; round < 3; round++) {
        char name[32];
        snprintf(name, sizeof name, "forked.own.%d", round);
        pid_t child = MUST(fork());
        if (child == 0) {
            exchange(&ends.client, &ends.server, 72);
            struct ends own = connect_ends(name, SOCK_STREAM);
            exchange(&own.client, &own.server, 73);
            close_ends(&own);
            exchange(&ends.server, &ends.client, 74);
            MUST(close(ends.client.fd)); /* the child's copy: the connection lives on in the parent */
            _exit(truth_failures() ? 1 : 40 + round);
        }
        CHECK(status_of(child) == 40 + round);
        exchange(&ends.client, &ends.server, 75);
        exchange(&ends.server, &ends.client, 76);
    }

    /* A child's child, when its parent is gone. */
    int gone[2];
    MUST(pipe(gone));
    pid_t child = MUST(fork());
    if (child == 0) {
        pid_t grandchild = MUST(fork());
        if (grandchild) _exit(0);
        exchange(&ends.client, &ends.server, 77);
        struct ends own = connect_ends("forked.grandchild", SOCK_STREAM);
        exchange(&own.client, &own.server, 78);
        close_ends(&own);
        _exit(0);
    }
    CHECK(status_of(child) == 0);
    char nothing;
    MUST(close(gone[1]));
    CHECK(read(gone[0], &nothing, 1) == 0); /* until the grandchild has ended */
    MUST(close(gone[0]));
    exchange(&ends.client, &ends.server, 79);
    close_ends(&ends);
}

static atomic_int stop;

static void *traffic_until_stopped(void *number) {
    char name[32];
    snprintf(name, sizeof name, "among.%d", (int)(long)number);
    struct ends ends = connect_ends(name, SOCK_STREAM);
    for (int i = 0; !atomic_load(&stop) || i < 10; i++) {
        exchange(&ends.client, &ends.server, 100);
        if (i > 100) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    close_ends(&ends);
    return NULL;
}

/* fork() copies one thread, whatever the others were in the middle of. */
void case_forked_among_threads(void) {
    enum { THREADS = 4, CHILDREN = 40 };
    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++) MUST(-pthread_create(&threads[i], NULL, traffic_until_stopped, (void *)i));
    for (int i = 0; i < CHILDREN; i++) {
        char name[32];
        snprintf(name, sizeof name, "among.child.%d", i);
        pid_t child = MUST(fork());
        if (child == 0) {
            struct ends ends = connect_ends(name, SOCK_STREAM);
            exchange(&ends.client, &ends.server, 200);
            exchange(&ends.server, &ends.client, 200);
            close_ends(&ends);
            _exit(truth_failures() != 0);
        }
        CHECK(status_of(child) == 0);
    }
    atomic_store(&stop, 1);
    for (int i = 0; i < THREADS; i++) MUST(-pthread_join(threads[i], NULL));
}

/* A program that is executed gets the descriptors that it would get untraced; the test knows how many these are. */
static void become_another_program(void) {
    execl(program, program, "descriptors", (char *)NULL);
    _exit(99);
}

void case_executed(void) {
    struct ends ends = connect_ends("executed", SOCK_STREAM | SOCK_CLOEXEC);
    exchange(&ends.client, &ends.server, 81);
    pid_t child = MUST(fork());
    if (child == 0) become_another_program();
    truth_note("inherited", status_of(child));
    exchange(&ends.client, &ends.server, 82);
    close_ends(&ends);
}

/* Between vfork() and exec the child borrows its parent's memory, but the descriptors are its own. */
void case_vforked(void) {
    for (volatile int round = 0; round < 5; round++) {
        char name[32];
        snprintf(name, sizeof name, "vforked.%d", round);
        struct ends ends = connect_ends(name, SOCK_STREAM | SOCK_CLOEXEC);
        exchange(&ends.client, &ends.server, 83);
        int pipe_ends[2];
        MUST(pipe(pipe_ends));
        pid_t child = vfork();
        if (child == 0) {
            close(ends.client.fd);
            dup2(pipe_ends[1], ends.server.fd);
            close(ends.server.fd);
            close(pipe_ends[0]);
            close(pipe_ends[1]);
            become_another_program();
        }
        MUST(child);
        truth_note("inherited", status_of(child));
        MUST(close(pipe_ends[0]));
        MUST(close(pipe_ends[1]));
        exchange(&ends.client, &ends.server, 84);
        exchange(&ends.server, &ends.client, 85);
        close_ends(&ends);
    }
}

/* Ends as a crash ends: what was sent before is on record. */
void case_killed(void) {
    struct ends ends = connect_ends("killed", SOCK_STREAM);
    for (size_t i = 0; i < 200; i++) {
        exchange(&ends.client, &ends.server, 100 + i);
        exchange(&ends.server, &ends.client, 4000);
    }
    kill(getpid(), SIGKILL);
}

static void *kill_soon(void *unused) {
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    kill(getpid(), SIGKILL);
    return unused;
}

void case_killed_at_any_time(void) {
    struct ends ends = connect_ends("killed.any", SOCK_STREAM);
    pthread_t killer;
    MUST(-pthread_create(&killer, NULL, kill_soon, NULL));
    for (;;) exchange(&ends.client, &ends.server, 300);
}

/// Ends when the test says so.
void case_lingering(void) {
    close((int)MUST(creat(address_in_dir("lingers").un.sun_path, 0600)));
    while (access(address_in_dir("end").un.sun_path, F_OK) != 0) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* A service that is given its sockets when it is executed (sd_listen_fds(3)): a listener, and a connection. */
void case_activated(void) {
    enum { LISTENER = 3, CONNECTION = 4 };
    const char *count = getenv("LISTEN_FDS"), *pid = getenv("LISTEN_PID");
    CHECK(count && atoi(count) == 2 && pid && atoi(pid) == getpid());
    struct address address = address_in_dir("activated"), given = address_in_dir("given");
    truth_listen(LISTENER, "preexisting:getsockname", address.expected);
    struct conn connection = conn_of(CONNECTION, SOCK_STREAM);
    truth_open(&connection, "preexisting:getsockname", given.expected);
    struct conn client = connect_to(&address, SOCK_STREAM), server = accept_from(LISTENER, &address);
    exchange(&client, &server, 71);
    exchange(&server, &client, 72);
    char bytes[32];
    CHECK(read_on(&connection, bytes, sizeof bytes) == 7);
    fill(bytes, sizeof bytes);
    CHECK(write_on(&connection, bytes, sizeof bytes) == sizeof bytes);
    close_conn(&client);
    close_conn(&server);
    close_conn(&connection);
    MUST(close(LISTENER));
}
