/* Threads, cancellation and signal handlers. */
#define _GNU_SOURCE
#include "cases.h"
#include "endpoint.h"
#include "transfer.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 8, CONNECTIONS_EACH = 5, MESSAGES_EACH = 100 };

static void *thread_traffic(void *number) {
    char name[32];
    snprintf(name, sizeof name, "thread.%d", (int)(long)number);
    for (int i = 0; i < CONNECTIONS_EACH; i++) {
        struct ends ends = connect_ends(name, SOCK_STREAM);
        for (size_t message = 0; message < MESSAGES_EACH; message++) {
            exchange(&ends.client, &ends.server, 8 + message);
            exchange(&ends.server, &ends.client, 500 - message);
        }
        close_ends(&ends);
        MUST(unlink(address_in_dir(name).un.sun_path));
    }
    return NULL;
}

void case_threads(void) {
    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++) MUST(-pthread_create(&threads[i], NULL, thread_traffic, (void *)i));
    for (int i = 0; i < THREADS; i++) MUST(-pthread_join(threads[i], NULL));
}

enum { ROUNDS = 400, SHARERS = 3 };

struct sharer {
    pthread_barrier_t *start;
    const struct conn *conn;
};

static void *use_a_copy(void *argument) {
    const struct sharer *sharer = argument;
    pthread_barrier_wait(sharer->start);
    int copy = MUST(dup(sharer->conn->fd));
    CHECK(send(copy, "first", 5, 0) == 5);
    MUST(close(copy));
    return NULL;
}

/* A socket's first bytes, by several threads at once, each with a descriptor of its own: it is one connection. */
void case_copies_at_once(void) {
    for (int round = 0; round < ROUNDS; round++) {
        int fds[2];
        MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
        struct conn conn = conn_of(fds[0], SOCK_STREAM);
        pthread_barrier_t start;
        MUST(-pthread_barrier_init(&start, NULL, SHARERS));
        struct sharer sharer = {&start, &conn};
        pthread_t threads[SHARERS];
        for (int i = 0; i < SHARERS; i++) MUST(-pthread_create(&threads[i], NULL, use_a_copy, &sharer));
        for (int i = 0; i < SHARERS; i++) MUST(-pthread_join(threads[i], NULL));
        MUST(-pthread_barrier_destroy(&start));
        MUST(close(fds[0]));
        MUST(close(fds[1]));
        truth_note("shared by copies", (long long)conn.inode);
    }
}

/* Calls that are cancellation points, by number. */
enum { BLOCKED_CALLS = 8 };

struct blocked {
    int call, fd, listener;
    atomic_int tid;
    int cleaned_up;
};

static void clean_up(void *blocked) {
    ((struct blocked *)blocked)->cleaned_up++;
}

static void *block(void *argument) {
    struct blocked *blocked = argument;
    char buffer[64];
    struct iovec iov = {buffer, sizeof buffer};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    pthread_cleanup_push(clean_up, blocked);
    atomic_store(&blocked->tid, (int)syscall(SYS_gettid));
    switch (blocked->call) {
    case 0: recv(blocked->fd, buffer, sizeof buffer, 0); break;
    case 1: read(blocked->fd, buffer, sizeof buffer); break;
    case 2: recvmsg(blocked->fd, &message, 0); break;
    case 3: recvfrom(blocked->fd, buffer, sizeof buffer, 0, NULL, NULL); break;
    case 4: readv(blocked->fd, &iov, 1); break;
    case 5: accept(blocked->listener, NULL, NULL); break;
    case 6: accept4(blocked->listener, NULL, NULL, 0); break;
    case 7:
        for (;;) send(blocked->fd, buffer, sizeof buffer, 0);
    }
    pthread_cleanup_pop(0);
    return NULL;
}

/* The state letter of proc(5)'s stat: S once the thread sleeps in its call. */
static int sleeps(int tid) {
    char name[64], text[256], letter = 0;
    snprintf(name, sizeof name, "/proc/self/task/%d/stat", tid);
    FILE *stat = fopen(name, "r");
    if (!stat) return 0;
    if (fgets(text, sizeof text, stat)) sscanf(strrchr(text, ')'), ") %c", &letter);
    fclose(stat);
    return letter == 'S';
}

/* A thread that is cancelled in a blocked call ends as cancelled, by way of its cleanup handlers. */
void case_cancelled(void) {
    for (int call = 0; call < BLOCKED_CALLS; call++) {
        char name[32], filled[64];
        snprintf(name, sizeof name, "cancelled.%d", call);
        struct ends ends = connect_ends(name, SOCK_STREAM);
        struct address address = address_in_dir("cancelled.listener");
        unlink(address.un.sun_path);
        struct blocked blocked = {.call = call, .fd = ends.server.fd, .listener = listen_at(&address, SOCK_STREAM)};
        exchange(&ends.client, &ends.server, 61);
        if (call == 7) {
            while (send_on(&ends.server, filled, sizeof filled, MSG_DONTWAIT) > 0) {}
        }
        pthread_t thread;
        MUST(-pthread_create(&thread, NULL, block, &blocked));
        while (!atomic_load(&blocked.tid) || !sleeps(atomic_load(&blocked.tid))) sched_yield();
        MUST(-pthread_cancel(thread));
        void *result;
        MUST(-pthread_join(thread, &result));
        CHECK(result == PTHREAD_CANCELED);
        CHECK(blocked.cleaned_up == 1);
        exchange(&ends.client, &ends.server, 62);
        MUST(close(blocked.listener));
        close_ends(&ends);
    }
}

enum { SIGNALS = 300 };

static struct ends in_handler;
static atomic_int handled;

static void speak_in_handler(int signal) {
    char buffer[16];
    int saved = errno;
    (void)signal;
    if (atomic_load(&handled) < SIGNALS) {
        exchange(&in_handler.client, &in_handler.server, sizeof buffer);
        CHECK(send_on(&in_handler.server, "\1\2\3", 3, 0) == 3);
        CHECK(read_on(&in_handler.client, buffer, sizeof buffer) == 3);
        atomic_fetch_add(&handled, 1);
    }
    errno = saved;
}

/* glibc has the member without the name. */
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

/* A timer's signal for this thread only: Frida's threads would run the handler too, at the same time. */
static timer_t timer_for_this_thread(void) {
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGALRM};
    event.sigev_notify_thread_id = (int)syscall(SYS_gettid);
    timer_t timer;
    MUST(timer_create(CLOCK_MONOTONIC, &event, &timer));
    return timer;
}

/* A handler on a small stack speaks on a connection of its own while the program is anywhere in a call. */
void case_signals(void) {
    in_handler = connect_ends("signals.handler", SOCK_STREAM);
    struct ends ends = connect_ends("signals.main", SOCK_STREAM);
    stack_t stack = {.ss_sp = malloc(SIGSTKSZ), .ss_size = SIGSTKSZ};
    MUST(sigaltstack(&stack, NULL));
    struct sigaction action = {.sa_handler = speak_in_handler, .sa_flags = SA_RESTART | SA_ONSTACK};
    MUST(sigaction(SIGALRM, &action, NULL));
    timer_t timer = timer_for_this_thread();
    struct itimerspec often = {{0, 1000000}, {0, 1000000}};
    MUST(timer_settime(timer, 0, &often, NULL));
    for (size_t i = 0; atomic_load(&handled) < SIGNALS; i++) {
        exchange(&ends.client, &ends.server, 1 + i % 300);
        exchange(&ends.server, &ends.client, 1 + i % 200);
    }
    MUST(timer_delete(timer));
    close_ends(&ends);
    close_ends(&in_handler);
}

enum { JUMPS = 300, LARGE = 16384 };

static sigjmp_buf before_calls;
static volatile sig_atomic_t jumps;

static void jump_out(int signal) {
    (void)signal;
    siglongjmp(before_calls, 1);
}

/* A handler jumps out of whatever is under way, the tracer's part of a call included. What is sent until then is in no
 * account, for who was interrupted cannot know what has moved; what is sent afterwards is. */
void case_jumped_out(void) {
    static char buffer[LARGE];
    int fds[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds));
    struct ends after = connect_ends("jumped_out.after", SOCK_STREAM);
    MUST(sigaction(SIGALRM, &(struct sigaction){.sa_handler = jump_out}, NULL));
    timer_t timer = timer_for_this_thread();
    /* Not the same time after each jump. */
    if (sigsetjmp(before_calls, 1) == 0 || ++jumps < JUMPS) {
        struct itimerspec once = {{0, 0}, {0, 100000 + 977 * (jumps % 100)}};
        MUST(timer_settime(timer, 0, &once, NULL));
        for (;;) {
            send(fds[0], buffer, sizeof buffer, 0);
            while (recv(fds[1], buffer, sizeof buffer, 0) > 0) {}
        }
    }
    MUST(timer_delete(timer));
    for (size_t i = 1; i <= 100; i++) {
        exchange(&after.client, &after.server, i);
        exchange(&after.server, &after.client, i);
    }
    close_ends(&after);
    MUST(close(fds[0]));
    MUST(close(fds[1]));
}

/* Whoever receives a message frees the memory that it was sent from, as soon as it is there: the sender's call may have
 * returned to the tracer, and not yet to the program. */
enum { MAPPED_LEN = 65536, MAPPED_MESSAGES = 400 };

static _Atomic(char *) sent_from;

static void *receive_and_unmap(void *end) {
    char *got = malloc(MAPPED_LEN);
    for (int i = 0; i < MAPPED_MESSAGES; i++) {
        CHECK(recv_on(end, got, MAPPED_LEN, MSG_WAITALL) == MAPPED_LEN);
        MUST(munmap(atomic_load(&sent_from), MAPPED_LEN));
        atomic_store(&sent_from, NULL);
    }
    free(got);
    return NULL;
}

void case_unmapped(void) {
    struct ends ends = connect_ends("unmapped", SOCK_STREAM);
    char *bytes = malloc(MAPPED_LEN);
    pthread_t receiver;
    MUST(-pthread_create(&receiver, NULL, receive_and_unmap, &ends.server));
    for (int i = 0; i < MAPPED_MESSAGES; i++) {
        char *mapped = mmap(NULL, MAPPED_LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        fill(bytes, MAPPED_LEN);
        memcpy(mapped, bytes, MAPPED_LEN);
        atomic_store(&sent_from, mapped);
        ssize_t sent = send(ends.client.fd, mapped, MAPPED_LEN, 0);
        CHECK(sent == MAPPED_LEN);
        truth_moved(&ends.client, "out", "send", bytes, sent);
        while (atomic_load(&sent_from)) sched_yield();
    }
    MUST(-pthread_join(receiver, NULL));
    free(bytes);
    close_ends(&ends);
}
