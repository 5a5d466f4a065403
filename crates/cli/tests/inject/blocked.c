/* blocked CALL: makes a system call that blocks for 1.5 seconds, by its own time limit or until something comes, and prints
 * its name, what it returned, errno, and how long it took in milliseconds. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LIMIT_MS 1500
static const struct timespec limit = { 1, 500000000 };
static const struct timeval limit_in_micros = { 1, 500000 };

static int ends[2];     /* a pipe */
static int pair[2];     /* sockets that are connected */
static int listener;
static char file[64], name[64];
static int semaphores, queue;
static uint32_t word;

static void ignore(int signal) {
    (void)signal;
}

/* Does something in another process when the time is over. */
static pid_t later(void (*what)(void)) {
    pid_t pid = fork();
    if (pid == 0) {
        nanosleep(&limit, NULL);
        what();
        _exit(7);
    }
    return pid;
}

static void nothing(void) {}
static void write_pipe(void) { if (write(ends[1], "x", 1) != 1) _exit(1); }
static void send_pair(void) { if (send(pair[1], "x", 1, 0) != 1) _exit(1); }
static void signal_parent(void) { kill(getppid(), SIGUSR1); }
static void touch(void) { close(open(file, O_WRONLY)); }
static void post(void) { struct sembuf up = { 0, 1, 0 }; semop(semaphores, &up, 1); }
static void queue_message(void) { struct { long type; char text[1]; } m = { 1, "x" }; msgsnd(queue, &m, 1, 0); }
static void connect_to(void) {
    struct sockaddr_un to = { .sun_family = AF_UNIX };
    memcpy(to.sun_path, name, sizeof name);
    connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&to, sizeof to);
}

static void time_limit(int fd, int option) { setsockopt(fd, SOL_SOCKET, option, &limit_in_micros, sizeof limit_in_micros); }

static int polled(void) { int fd = epoll_create1(0); struct epoll_event e = { .events = EPOLLIN }; epoll_ctl(fd, EPOLL_CTL_ADD, ends[0], &e); return fd; }

/* A lock that another process has for so long. */
static int locked(void) {
    int told[2];
    char byte;
    if (pipe(told) != 0) return -1;
    if (fork() == 0) {
        int fd = open(file, O_RDWR);
        struct flock whole = { .l_type = F_WRLCK };
        flock(fd, LOCK_EX);
        fcntl(fd, F_SETLK, &whole);
        if (write(told[1], "x", 1) != 1) _exit(1);
        nanosleep(&limit, NULL);
        _exit(0);
    }
    return read(told[0], &byte, 1) == 1 ? open(file, O_RDWR) : -1;
}

static void listen_at(void) {
    struct sockaddr_un at = { .sun_family = AF_UNIX };
    memcpy(at.sun_path, name, sizeof name);
    unlink(name);
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    bind(listener, (struct sockaddr *)&at, sizeof at);
    listen(listener, 1);
}

static long uring(void) {
    struct io_uring_params params = { 0 };
    int fd = syscall(SYS_io_uring_setup, 4, &params);
    if (fd < 0) return -2;
    struct __kernel_timespec time = { 1, 500000000 };
    struct io_uring_getevents_arg argument = { .ts = (uint64_t)(uintptr_t)&time };
    return syscall(SYS_io_uring_enter, fd, 0, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &argument, sizeof argument);
}

static long absolute(void) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += 1;
    until.tv_nsec += 500000000;
    if (until.tv_nsec >= 1000000000) { until.tv_nsec -= 1000000000; until.tv_sec++; }
    return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

static long timer(void) {
    uint64_t count;
    struct itimerspec at = { .it_value = limit };
    int fd = timerfd_create(CLOCK_MONOTONIC, 0);
    timerfd_settime(fd, 0, &at, NULL);
    return read(fd, &count, sizeof count);
}

static long queue_limit(void) {
    struct timespec until;
    struct mq_attr attributes = { .mq_maxmsg = 1, .mq_msgsize = 16 };
    char buffer[16];
    snprintf(file, sizeof file, "/blocked-%d", getpid());
    mqd_t fd = mq_open(file, O_CREAT | O_RDWR, 0600, &attributes);
    mq_unlink(file);
    if (fd < 0) return -2;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 1;
    until.tv_nsec += 500000000;
    if (until.tv_nsec >= 1000000000) { until.tv_nsec -= 1000000000; until.tv_sec++; }
    return mq_timedreceive(fd, buffer, sizeof buffer, NULL, &until);
}

#define USR1 ({ static sigset_t set; sigemptyset(&set); sigaddset(&set, SIGUSR1); &set; })
#define CALLS(call)                                                                                                      \
    call(nanosleep, , nanosleep(&limit, NULL))                                                                           \
    call(clock_nanosleep, , absolute())                                                                                  \
    call(poll, , poll(&(struct pollfd){ ends[0], POLLIN, 0 }, 1, LIMIT_MS))                                              \
    call(poll_woken, later(write_pipe), poll(&(struct pollfd){ ends[0], POLLIN, 0 }, 1, -1))                             \
    call(ppoll, , ppoll(&(struct pollfd){ ends[0], POLLIN, 0 }, 1, &limit, NULL))                                        \
    call(ppoll_of_constants, , syscall(SYS_ppoll, &(struct pollfd){ ends[0], POLLIN, 0 }, 1, &limit, NULL, 8))           \
    call(select, , ({ fd_set s; FD_ZERO(&s); FD_SET(ends[0], &s); select(ends[0] + 1, &s, 0, 0, &(struct timeval){ 1, 500000 }); })) \
    call(pselect, , ({ fd_set s; FD_ZERO(&s); FD_SET(ends[0], &s); pselect(ends[0] + 1, &s, 0, 0, &limit, NULL); }))      \
    call(epoll_wait, int e = polled(), ({ struct epoll_event got; epoll_wait(e, &got, 1, LIMIT_MS); }))                  \
    call(epoll_woken, int e = polled(); later(write_pipe), ({ struct epoll_event got; epoll_wait(e, &got, 1, -1); }))    \
    call(epoll_pwait, int e = polled(), ({ struct epoll_event got; epoll_pwait(e, &got, 1, LIMIT_MS, USR1); }))          \
    call(epoll_pwait2, int e = polled(), ({ struct epoll_event got; syscall(SYS_epoll_pwait2, e, &got, 1, &limit, NULL, 8); })) \
    call(futex, , syscall(SYS_futex, &word, FUTEX_WAIT, 0, &limit, NULL, 0))                                             \
    call(recv_limit, time_limit(pair[0], SO_RCVTIMEO), ({ char b; recv(pair[0], &b, 1, 0); }))                           \
    call(recv_limit_woken, setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){ 4, 0 }, sizeof(struct timeval)); later(send_pair), ({ char b; recv(pair[0], &b, 1, 0); }))   \
    call(read_limit, time_limit(pair[0], SO_RCVTIMEO), ({ char b; read(pair[0], &b, 1); }))                              \
    call(recv_woken, later(send_pair), ({ char b; recv(pair[0], &b, 1, 0); }))                                           \
    call(send_limit, static char m[1 << 20]; time_limit(pair[0], SO_SNDTIMEO); while (send(pair[0], m, 1024, MSG_DONTWAIT) > 0), send(pair[0], m, sizeof m, 0)) \
    call(accept_limit, listen_at(); time_limit(listener, SO_RCVTIMEO), accept(listener, NULL, NULL))                     \
    call(accept_woken, listen_at(); later(connect_to), accept(listener, NULL, NULL) >= 0 ? 0 : -1)                       \
    call(sigtimedwait, sigprocmask(SIG_BLOCK, USR1, NULL), sigtimedwait(USR1, NULL, &limit))                             \
    call(sigwaitinfo, sigprocmask(SIG_BLOCK, USR1, NULL); later(signal_parent), sigwaitinfo(USR1, NULL))                 \
    call(semtimedop, , ({ struct sembuf down = { 0, -1, 0 }; semtimedop(semaphores, &down, 1, &limit); }))               \
    call(semop_woken, later(post), ({ struct sembuf down = { 0, -1, 0 }; semop(semaphores, &down, 1); }))                \
    call(msgrcv_woken, later(queue_message), ({ struct { long t; char x[8]; } m; msgrcv(queue, &m, 8, 0, 0); }))         \
    call(mq_timedreceive, , queue_limit())                                                                               \
    call(flock, int fd = locked(), flock(fd, LOCK_EX))                                                                   \
    call(fcntl_lock, int fd = locked(), ({ struct flock whole = { .l_type = F_WRLCK }; fcntl(fd, F_SETLKW, &whole); }))  \
    call(wait4, later(nothing), wait4(-1, NULL, 0, NULL) > 0 ? 0 : -1)                                                   \
    call(waitid, later(nothing), waitid(P_ALL, 0, &(siginfo_t){ 0 }, WEXITED))                                           \
    call(pause, signal(SIGUSR1, ignore); later(signal_parent), pause())                                                  \
    call(sigsuspend, signal(SIGUSR1, ignore); sigprocmask(SIG_BLOCK, USR1, NULL); later(signal_parent), ({ sigset_t none; sigemptyset(&none); sigsuspend(&none); })) \
    call(interrupted, signal(SIGUSR1, ignore); siginterrupt(SIGUSR1, 1); later(signal_parent), ({ char b; read(ends[0], &b, 1); })) \
    call(read_woken, later(write_pipe), ({ char b; read(ends[0], &b, 1); }))                                             \
    call(timerfd, , timer())                                                                                             \
    call(inotify, int fd = inotify_init(); inotify_add_watch(fd, file, IN_OPEN); later(touch), ({ char b[4096]; read(fd, b, sizeof b) > 0 ? 0 : -1; })) \
    call(io_uring_enter, , uring())

#define DEFINE(call, prepare, make)                  \
    static void call_##call(struct timespec *from) { \
        prepare;                                     \
        clock_gettime(CLOCK_MONOTONIC, from);        \
        errno = 0;                                   \
        result = make;                               \
    }
#define LIST(call, prepare, make) { #call, call_##call },
static volatile long result;
CALLS(DEFINE)
static const struct { const char *name; void (*call)(struct timespec *); } all[] = { CALLS(LIST) };

int main(int count, char **arguments) {
    struct timespec from, to;
    if (count < 2) {
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) puts(all[i].name);
        return 0;
    }
    snprintf(file, sizeof file, "/tmp/blocked-%d", getpid());
    snprintf(name, sizeof name, "/tmp/blocked-%d.other", getpid());
    close(open(file, O_CREAT | O_RDWR, 0600));
    if (pipe(ends) != 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) return 1;
    semaphores = semget(IPC_PRIVATE, 1, 0600);
    queue = msgget(IPC_PRIVATE, 0600);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (strcmp(all[i].name, arguments[1]) == 0) {
            all[i].call(&from);
            int error = errno;
            clock_gettime(CLOCK_MONOTONIC, &to);
            long ms = (to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000;
            printf("%s %ld %d %ld\n", all[i].name, result, error, ms);
        }
    }
    semctl(semaphores, 0, IPC_RMID);
    msgctl(queue, IPC_RMID, NULL);
    unlink(file);
    unlink(name);
    return 0;
}
