/* worked THREADS: threads that compute with vector registers, handle signals on small alternate stacks, and say things over
 * socket pairs, until standard input ends; any difference from what has to come out is an error. Prints its process id first,
 * and last how many messages it has sent. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static atomic_int is_over;
static atomic_long sent, handled, raised;

static void fail(const char *what) {
    fprintf(stderr, "wrong: %s (errno %d)\n", what, errno);
    _exit(3);
}

static void handler(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    if (info->si_code == SI_QUEUE) atomic_fetch_add(&handled, 1);
}

typedef double vector __attribute__((vector_size(32)));

/* The same every time, if nobody changes a register. */
static vector compute(void) {
    vector a = { 1, 2, 3, 4 }, b = { 1.0000001, 1.0000002, 1.0000003, 1.0000004 };
    for (int i = 0; i < 20000; i++) a = a * b + b;
    return a;
}

static void *computes(void *unused) {
    (void)unused;
    vector expected = compute();
    while (!is_over) {
        errno = 77;
        vector now = compute();
        if (memcmp(&now, &expected, sizeof now) != 0) fail("a register was changed");
        if (errno != 77) fail("errno was changed");
    }
    return NULL;
}

static void *talks(void *unused) {
    (void)unused;
    int pair[2];
    char text[32], got[32];
    stack_t stack = { .ss_sp = malloc(MINSIGSTKSZ + 4096), .ss_size = MINSIGSTKSZ + 4096 };
    sigaltstack(&stack, NULL);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) != 0) fail("socketpair");
    for (long i = 0; !is_over; i++) {
        int len = snprintf(text, sizeof text, "message %ld", i);
        errno = 0;
        if (send(pair[0], text, len, 0) != len || errno != 0) fail("send");
        atomic_fetch_add(&sent, 1);
        if (recv(pair[1], got, sizeof got, 0) != len || memcmp(text, got, len) != 0) fail("recv");
        union sigval value = { .sival_int = 1 };
        if (i % 16 == 0 && sigqueue(getpid(), SIGRTMIN, value) == 0) atomic_fetch_add(&raised, 1);
        nanosleep(&(struct timespec){ 0, 100000 }, NULL);
    }
    return NULL;
}

int main(int count, char **arguments) {
    int threads = count > 1 ? atoi(arguments[1]) : 4;
    pthread_t all[64];
    struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART };
    sigaction(SIGRTMIN, &action, NULL);
    for (int i = 0; i < threads; i++) pthread_create(&all[i], NULL, i % 2 ? computes : talks, NULL);
    printf("%d\n", getpid());
    fflush(stdout);
    while (getchar() != EOF);
    is_over = 1;
    for (int i = 0; i < threads; i++) pthread_join(all[i], NULL);
    if (handled != raised) fail("a signal was lost");
    printf("%ld\n", (long)sent);
    return 6;
}
