/* How much stack each call takes: paints one, makes the call on it, and looks how far the paint is gone.
 *
 *     stack DIR
 *
 * A line for each call: its name, `first` (on a socket that has just been made, which a tracer may not know yet) or
 * `again`, and bytes. Linked with -z now: finding a function is the dynamic linker's own business. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

enum { STACK = 256 << 10, PAINT = 0xa5, AGAIN = 3 };

extern char **environ;
ssize_t __read_chk(int, void *, size_t, size_t);
ssize_t __recv_chk(int, void *, size_t, size_t, int);
ssize_t __recvfrom_chk(int, void *, size_t, size_t, int, struct sockaddr *, socklen_t *);

static unsigned char *painted;
static ucontext_t here, there;
static void (*job)(void);
/* The two ends, a listening socket, one that connects to it, a file, a pipe, and what has just been made. */
static int a, b, listener, client, file, pipe_ends[2], made;
static char bytes[64], control[256];
static long result;
static struct iovec vector = {bytes, 5}, room = {bytes, sizeof bytes};
static struct msghdr message, into;
static struct mmsghdr many, many_into;
static struct sockaddr_un address, from;
static socklen_t address_len, from_len;
static char *arguments[] = {"true", NULL};
static char long_name[200];

/* Without libc, so that nobody notices. */
static long unseen(long number, long one, long two, long three, long four) {
    long value;
    register long r10 __asm__("r10") = four;
    __asm__ volatile("syscall" : "=a"(value) : "a"(number), "D"(one), "S"(two), "d"(three), "r"(r10) : "rcx", "r11", "memory");
    return value;
}

/* Sends a descriptor. */
static void pass(int socket, int fd) {
    struct iovec one = {"12345", 5};
    char space[CMSG_SPACE(sizeof(int))] = {0};
    struct msghdr sent = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    struct cmsghdr *header = CMSG_FIRSTHDR(&sent);
    *header = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    if (unseen(SYS_sendmsg, socket, (long)&sent, 0, 0) != 5) abort();
}

/* `a` comes in a message, so that what it is has to be found out when it is first used. */
static void new_pair(void) {
    static int helper[2] = {-1, -1};
    int new[2];
    if (helper[0] < 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, helper) != 0) abort();
    if (unseen(SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, (long)new) != 0) abort();
    pass(helper[1], new[0]);
    into = (struct msghdr){.msg_iov = &room, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    if (recvmsg(helper[0], &into, 0) != 5) abort();
    memcpy(&a, CMSG_DATA(CMSG_FIRSTHDR(&into)), sizeof a);
    b = new[1];
    unseen(SYS_close, new[0], 0, 0, 0);
}

/* What is sent to `a` comes from where no call of a tracer's would be seen. */
static void fill(void) {
    if (unseen(SYS_write, b, (long)"12345", 5, 0) != 5) abort();
}

static void fill_with_descriptor(void) { pass(b, listener); }

/* The other end is emptied, so that there is always room. */
static void empty(void) {
    char got[256];
    while (unseen(SYS_recvfrom, b, (long)got, sizeof got, MSG_DONTWAIT) > 0) {}
}

static void reset_messages(void) {
    message = (struct msghdr){.msg_iov = &vector, .msg_iovlen = 1};
    into = (struct msghdr){.msg_iov = &room, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    many.msg_hdr = message, many_into.msg_hdr = into;
    from_len = sizeof from;
}

static void take_descriptor(void) {
    struct cmsghdr *header = CMSG_FIRSTHDR(&into);
    if (header && header->cmsg_type == SCM_RIGHTS) {
        int fd;
        memcpy(&fd, CMSG_DATA(header), sizeof fd);
        unseen(SYS_close, fd, 0, 0, 0);
    }
}

static void make_listener(void) {
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    bind(listener, (struct sockaddr *)&address, address_len);
    listen(listener, 8);
}

static void drop_listener(void) {
    close(listener);
    unlink(address.sun_path);
}

static void connect_unseen(void) {
    client = (int)unseen(SYS_socket, AF_UNIX, SOCK_STREAM, 0, 0);
    if (unseen(SYS_connect, client, (long)&address, address_len, 0) != 0) abort();
}

static void new_client(void) {
    client = socket(AF_UNIX, SOCK_STREAM, 0);
}

static void close_made(void) {
    if (made >= 0) close(made);
}

static void close_client(void) {
    close(client);
}

static void close_both(void) {
    if (made >= 0) close(made);
    close(client);
}

static void nothing(void) {}

static void in_child(void (*action)(void)) {
    pid_t child = vfork();
    if (child == 0) {
        action();
        _exit(1);
    }
    made = child;
}

static void reap(void) {
    if (made > 0) waitpid(made, NULL, 0);
}

static void child_execve(void) { execve("/bin/true", arguments, environ); }
static void child_execve_empty(void) { execve("/bin/true", arguments, (char *[]){NULL}); }
static void child_execv(void) { execv("/bin/true", arguments); }
static void child_execvp(void) { execvp("/bin/true", arguments); }
static void child_execvpe(void) { execvpe("/bin/true", arguments, environ); }
static void child_fexecve(void) { fexecve(file, arguments, environ); }
static void child_execveat(void) { execveat(file, "", arguments, environ, AT_EMPTY_PATH); }
static void child_syscall(void) { syscall(SYS_execve, "/bin/true", arguments, environ); }
static void child_exit(void) { _exit(0); }

static int cloned(void *argument) {
    (void)argument;
    return 0;
}

static void call_fork(void) {
    made = fork();
    if (made == 0) _exit(0);
}

static void call_vfork(void) { in_child(nothing); }

#define CALLS(X) \
    X(send, empty, send(a, "12345", 5, 0), nothing) \
    X(sendto, empty, sendto(a, "12345", 5, 0, NULL, 0), nothing) \
    X(sendmsg, empty, sendmsg(a, &message, 0), nothing) \
    X(sendmmsg, empty, sendmmsg(a, &many, 1, 0), nothing) \
    X(write, empty, write(a, "12345", 5), nothing) \
    X(writev, empty, writev(a, &vector, 1), nothing) \
    X(pwritev2, empty, pwritev2(a, &vector, 1, -1, 0), nothing) \
    X(recv, fill, recv(a, bytes, sizeof bytes, 0), nothing) \
    X(recvfrom, fill, recvfrom(a, bytes, sizeof bytes, 0, (struct sockaddr *)&from, &from_len), nothing) \
    X(recvmsg, fill, recvmsg(a, &into, 0), nothing) \
    X(recvmsg_rights, fill_with_descriptor, recvmsg(a, &into, 0), take_descriptor) \
    X(recvmmsg, fill, recvmmsg(a, &many_into, 1, 0, NULL), nothing) \
    X(read, fill, read(a, bytes, sizeof bytes), nothing) \
    X(readv, fill, readv(a, &room, 1), nothing) \
    X(preadv2, fill, preadv2(a, &room, 1, -1, 0), nothing) \
    X(__read_chk, fill, __read_chk(a, bytes, sizeof bytes, sizeof bytes), nothing) \
    X(__recv_chk, fill, __recv_chk(a, bytes, sizeof bytes, sizeof bytes, 0), nothing) \
    X(__recvfrom_chk, fill, __recvfrom_chk(a, bytes, sizeof bytes, sizeof bytes, 0, NULL, NULL), nothing) \
    X(syscall_sendto, empty, syscall(SYS_sendto, a, "12345", 5, 0, NULL, 0), nothing) \
    X(syscall_read, fill, syscall(SYS_read, a, bytes, sizeof bytes), nothing) \
    X(syscall_other, nothing, syscall(SYS_getppid), nothing) \
    X(syscall_execve, nothing, syscall(SYS_execve, "/nowhere", arguments, environ), nothing) \
    X(sendfile, empty, sendfile(a, file, &(off_t){0}, 5), nothing) \
    X(splice, fill, splice(a, NULL, pipe_ends[1], NULL, 5, 0), empty_pipe) \
    X(shutdown, nothing, shutdown(a, SHUT_WR), nothing) \
    X(dup, nothing, made = dup(a), close_made) \
    X(dup2, nothing, made = dup2(a, 200), close_made) \
    X(dup3, nothing, made = dup3(a, 200, O_CLOEXEC), close_made) \
    X(fcntl, nothing, made = fcntl(a, F_DUPFD, 100), close_made) \
    X(pidfd_getfd, nothing, made = (int)syscall(SYS_pidfd_getfd, pidfd, a, 0), close_made) \
    X(close_dup, dup_first, close(made), nothing) \
    X(close_range, dup_high, close_range(900, ~0U, 0), nothing) \
    X(closefrom, dup_high, (closefrom(900), 0), nothing) \
    X(socket, nothing, made = socket(AF_UNIX, SOCK_STREAM, 0), close_made) \
    X(socketpair, nothing, socketpair(AF_UNIX, SOCK_STREAM, 0, pair), close_pair) \
    X(bind, new_client, bind(client, (struct sockaddr *)&other, sizeof(sa_family_t)), close_client) \
    X(listen, make_bound, listen(client, 8), close_client) \
    X(connect, new_client, connect(client, (struct sockaddr *)&address, address_len), close_accepted) \
    X(connect_refused, new_client, connect(client, (struct sockaddr *)&nowhere, sizeof nowhere), close_client) \
    X(accept, connect_unseen, made = accept(listener, NULL, NULL), close_both) \
    X(accept4, connect_unseen, made = accept4(listener, NULL, NULL, SOCK_CLOEXEC), close_both) \
    X(prctl, nothing, prctl(PR_GET_DUMPABLE), nothing) \
    X(execve_missing, nothing, execve(long_name, arguments, environ), nothing) \
    X(execv_missing, nothing, execv(long_name, arguments), nothing) \
    X(vfork, nothing, (call_vfork(), 0), reap) \
    X(fork, nothing, (call_fork(), 0), reap) \
    X(clone, nothing, made = clone(cloned, child_stack + sizeof child_stack, SIGCHLD, NULL), reap) \
    X(posix_spawn, nothing, posix_spawn(&made, "/bin/true", NULL, NULL, arguments, environ), reap) \
    X(posix_spawnp, nothing, posix_spawnp(&made, "/bin/true", NULL, NULL, arguments, environ), reap) \
    X(execve, nothing, (in_child(child_execve), 0), reap) \
    X(execve_empty, nothing, (in_child(child_execve_empty), 0), reap) \
    X(execv, nothing, (in_child(child_execv), 0), reap) \
    X(execvp, nothing, (in_child(child_execvp), 0), reap) \
    X(execvpe, nothing, (in_child(child_execvpe), 0), reap) \
    X(fexecve, nothing, (in_child(child_fexecve), 0), reap) \
    X(execveat, nothing, (in_child(child_execveat), 0), reap) \
    X(syscall_execve_true, nothing, (in_child(child_syscall), 0), reap) \
    X(_exit, nothing, (in_child(child_exit), 0), reap)

static int pidfd, pair[2];
static struct sockaddr_un other = {.sun_family = AF_UNIX}, nowhere = {.sun_family = AF_UNIX, .sun_path = "/nowhere/socket"};
static char child_stack[64 << 10] __attribute__((aligned(16)));

static void dup_first(void) { made = dup(a); }
static void dup_high(void) { made = dup2(a, 900); }
static void close_a(void) { result = close(a); }
static void empty_pipe(void) { unseen(SYS_read, pipe_ends[0], (long)bytes, sizeof bytes, 0); }
static void close_pair(void) { close(pair[0]), close(pair[1]); }
static void make_bound(void) {
    new_client();
    bind(client, (struct sockaddr *)&other, sizeof(sa_family_t));
}
static void close_accepted(void) {
    close(client);
    made = accept(listener, NULL, NULL);
    close_made();
}

#define FUNCTION(name, before, call, after) \
    static void call_of_##name(void) { result = (long)(call); }
CALLS(FUNCTION)
#undef FUNCTION

static void run_job(void) {
    job();
}

/* Bytes of stack that it takes. */
static size_t measure(void (*function)(void)) {
    memset(painted, PAINT, STACK);
    job = function;
    getcontext(&there);
    there.uc_stack.ss_sp = painted;
    there.uc_stack.ss_size = STACK;
    there.uc_link = &here;
    makecontext(&there, run_job, 0);
    swapcontext(&here, &there);
    size_t left = 0;
    while (left < STACK && painted[left] == PAINT) left++;
    return STACK - left;
}

static void report(const char *name, const char *which, size_t used) {
    printf("%s %s %zu\n", name, which, used);
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    painted = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    address.sun_family = AF_UNIX;
    snprintf(address.sun_path, sizeof address.sun_path, "%s/stack", argv[1]);
    address_len = sizeof address;
    memset(long_name, 'x', sizeof long_name - 1);
    memcpy(long_name, "/nowhere/", 9);
    file = open("/bin/true", O_RDONLY);
    if (pipe(pipe_ends) != 0) return 2;
    pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    make_listener();
    static const struct {
        const char *name;
        void (*before)(void), (*call)(void), (*after)(void);
    } calls[] = {
#define ENTRY(name, before, call, after) {#name, before, call_of_##name, after},
        CALLS(ENTRY)
#undef ENTRY
    };
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        size_t most = 0;
        for (int time = 0; time <= AGAIN; time++) {
            if (time == 0) new_pair();
            reset_messages();
            calls[i].before();
            size_t used = measure(calls[i].call);
            calls[i].after();
            if (time == 0) report(calls[i].name, "first", used);
            else if (used > most) most = used;
        }
        report(calls[i].name, "again", most);
        close(a), close(b);
    }
    /* The end of a connection that was used. */
    for (int time = 0; time < 2; time++) {
        new_pair();
        if (time && write(a, "12345", 5) != 5) return 2;
        report("close", time ? "again" : "first", measure(close_a));
        close(b);
    }
    drop_listener();
    return 0;
}
