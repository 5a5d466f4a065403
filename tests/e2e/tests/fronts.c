/* Threads that are between the first instructions of libc's functions while the probe's hooks are put in place, taken away
   and put back. Usage: fronts PROBE, with the probe's parameters on standard input. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

/* How many instructions after the first a thread is stopped. */
#define MAX_STEPS 8
#define FD INT_MAX

static char *const nothing[] = { NULL };
static pid_t spawned;

enum kind { DESCRIPTOR, EXECUTE, AT, SPAWN, NONE, NO_RESULT };

static const struct call { const char *name; enum kind kind; } calls[] = {
    { "read" }, { "write" }, { "readv" }, { "writev" }, { "preadv2" }, { "pwritev2" }, { "__read_nocancel" },
    { "__write_nocancel" }, { "__close_nocancel" }, { "close" }, { "dup" }, { "dup2" }, { "dup3" }, { "fcntl" },
    { "fcntl64" }, { "close_range" }, { "closefrom", NO_RESULT }, { "pidfd_getfd" }, { "socket" }, { "socketpair" },
    { "bind" }, { "listen" }, { "connect" }, { "accept" }, { "accept4" }, { "shutdown" }, { "send" }, { "recv" },
    { "sendto" }, { "recvfrom" }, { "__recvfrom_chk" }, { "__recv_chk" }, { "sendmsg" }, { "recvmsg" }, { "sendmmsg" },
    { "recvmmsg" }, { "sendfile" }, { "splice" }, { "prctl" }, { "syscall" }, { "clone", NONE }, { "fexecve" },
    { "execve", EXECUTE }, { "execv", EXECUTE }, { "execvp", EXECUTE }, { "execvpe", EXECUTE }, { "execveat", AT },
    { "posix_spawn", SPAWN }, { "posix_spawnp", SPAWN }, { "fork", NONE },
};
#define CALLS (sizeof calls / sizeof *calls)

static long (*functions[CALLS])();
static long results[CALLS];
static int errors[CALLS];

static atomic_int arrived, stopped, released;
static __thread unsigned long front;
static __thread int steps;

/* Not libc's, which are what is tested. */
static void wait_while(atomic_int *word, int value) {
    while (atomic_load(word) == value) {
        register long timeout __asm__("r10") = 0;
        long result;
        __asm__ volatile("syscall" : "=a"(result)
                         : "a"(SYS_futex), "D"(word), "S"(FUTEX_WAIT), "d"(value), "r"(timeout) : "rcx", "r11", "memory");
    }
}

static void stepped(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    static __thread int is_inside;
    if ((unsigned long)registers[REG_RIP] == front) {
        is_inside = 1;
    } else if (is_inside && --steps == 0) {
        is_inside = 0;
        int round = atomic_load(&released);
        atomic_fetch_add(&stopped, 1);
        atomic_fetch_add(&arrived, 1);
        wait_while(&released, round);
        registers[REG_EFL] &= ~0x100L;
    }
}

static long make(size_t which) {
    long (*f)() = functions[which];
    errno = 0;
    switch (calls[which].kind) {
    case EXECUTE: return f("/nowhere/nothing", nothing, nothing);
    case AT: return f(FD, "nothing", nothing, nothing, 0);
    case SPAWN: return f(&spawned, "/nowhere/nothing", NULL, NULL, nothing, nothing);
    case NONE: return f(NULL, NULL, 0, NULL);
    default: return f(FD, 0, 0, 0, 0, 0, 0);
    }
}

/* The same in child and parent. */
static long settled(size_t which, long result) {
    if (strcmp(calls[which].name, "fork") == 0) {
        if (result == 0) {
            syscall(SYS_exit_group, 0);
        }
        return result > 0;
    }
    return calls[which].kind == NO_RESULT ? 0 : (int)result;
}

static int failed;

static void check(size_t which, long result, int error, const char *where) {
    if (result != results[which] || error != errors[which]) {
        printf("%s %s: %ld, errno %d, and without us %ld, %d\n", calls[which].name, where, result, error, results[which],
               errors[which]);
        failed = 1;
    }
}

static void *thread(void *argument) {
    size_t which = (size_t)argument / MAX_STEPS;
    int wanted = (size_t)argument % MAX_STEPS + 1;
    front = (unsigned long)functions[which];
    steps = wanted;
    __asm__ volatile("pushfq; orq $0x100, (%%rsp); popfq" ::: "memory", "cc");
    long result = make(which);
    __asm__ volatile("pushfq; andq $~0x100, (%%rsp); popfq" ::: "memory", "cc");
    int error = errno;
    if (steps > 0) {
        /* It was over before. */
        atomic_fetch_add(&arrived, 1);
    }
    result = settled(which, result);
    char where[40];
    snprintf(where, sizeof where, "stopped after %d steps", wanted);
    check(which, result, error, where);
    return NULL;
}

/* Stops a thread everywhere, changes the code, and lets them go on. */
static void around(void (*change)(void)) {
    static pthread_t threads[CALLS * MAX_STEPS];
    static int is_started[CALLS * MAX_STEPS];
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 128 << 10);
    int expected = 0;
    atomic_store(&arrived, 0);
    for (size_t i = 0; i < CALLS * MAX_STEPS; i++) {
        is_started[i] = functions[i / MAX_STEPS] != NULL && pthread_create(&threads[i], &attributes, thread, (void *)i) == 0;
        expected += is_started[i];
    }
    while (atomic_load(&arrived) < expected) {
        sched_yield();
    }
    change();
    atomic_fetch_add(&released, 1);
    syscall(SYS_futex, &released, FUTEX_WAKE, INT_MAX, NULL);
    for (size_t i = 0; i < CALLS * MAX_STEPS; i++) {
        if (is_started[i]) {
            pthread_join(threads[i], NULL);
        }
    }
    for (size_t i = 0; i < CALLS; i++) {
        if (functions[i] != NULL) {
            long result = settled(i, make(i));
            check(i, result, errno, "afterwards");
        }
    }
}

static void *probe;

static char parameters[1 << 16];
static size_t len;

static void start(void) {
    const char *complaint = ((const char *(*)(const char *, size_t))dlsym(probe, "socktrace_start"))(parameters, len);
    if (complaint != NULL) {
        printf("%s\n", complaint);
        failed = 1;
    }
}

static void leave(void) {
    ((void (*)(void))dlsym(probe, "socktrace_leave"))();
}

int main(int count, char **arguments) {
    len = fread(parameters, 1, sizeof parameters, stdin);
    signal(SIGCHLD, SIG_IGN);
    for (size_t i = 0; i < CALLS; i++) {
        functions[i] = dlsym(RTLD_DEFAULT, calls[i].name);
        if (functions[i] != NULL) {
            results[i] = settled(i, make(i));
            errors[i] = errno;
        }
    }
    probe = dlopen(arguments[1], RTLD_NOW);
    if (probe == NULL) {
        printf("%s\n", dlerror());
        return 1;
    }
    struct sigaction action = { .sa_sigaction = stepped, .sa_flags = SA_SIGINFO };
    sigaction(SIGTRAP, &action, NULL);
    around(start);
    around(leave);
    around(start);
    printf("%d stopped\n", atomic_load(&stopped));
    return failed;
}
