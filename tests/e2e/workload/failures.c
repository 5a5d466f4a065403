/* Calls that fail: the same error as untraced, and nothing recorded. */
#define _GNU_SOURCE
#include "cases.h"
#include "endpoint.h"
#include "transfer.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FAILS(call, error) (errno = 0, CHECK((call) == -1), CHECK(errno == (error)))

enum { NO_SUCH_FD = 987 };

void case_failures(void) {
    char bytes[32] = "never moved";
    struct iovec iov = {bytes, sizeof bytes};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    struct address address = address_in_dir("failures");
    struct sockaddr *name = (struct sockaddr *)&address.un;

    int fd = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    FAILS(connect(fd, name, address.len), ENOENT);
    int bound = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(bind(bound, name, address.len));
    FAILS(connect(fd, name, address.len), ECONNREFUSED);
    FAILS(bind(fd, name, address.len), EADDRINUSE);
    FAILS(send(fd, bytes, sizeof bytes, MSG_NOSIGNAL), ENOTCONN);
    FAILS(recv(fd, bytes, sizeof bytes, 0), EINVAL);
    FAILS(accept(bound, NULL, NULL), EINVAL);
    MUST(listen(bound, 1));
    truth_listen(bound, "listen", address.expected);
    MUST(fcntl(bound, F_SETFL, O_NONBLOCK));
    FAILS(accept(bound, NULL, NULL), EAGAIN);
    FAILS(accept4(bound, NULL, NULL, 0), EAGAIN);
    FAILS(accept4(bound, NULL, NULL, ~0), EINVAL);
    MUST(close(fd));

    FAILS(send(NO_SUCH_FD, bytes, sizeof bytes, 0), EBADF);
    FAILS(send(-1, bytes, sizeof bytes, 0), EBADF);
    FAILS(sendto(NO_SUCH_FD, bytes, sizeof bytes, 0, name, address.len), EBADF);
    FAILS(sendmsg(NO_SUCH_FD, &message, 0), EBADF);
    FAILS(write(NO_SUCH_FD, bytes, sizeof bytes), EBADF);
    FAILS(writev(NO_SUCH_FD, &iov, 1), EBADF);
    FAILS(recv(NO_SUCH_FD, bytes, sizeof bytes, 0), EBADF);
    FAILS(recvfrom(NO_SUCH_FD, bytes, sizeof bytes, 0, NULL, NULL), EBADF);
    FAILS(recvmsg(NO_SUCH_FD, &message, 0), EBADF);
    FAILS(read(NO_SUCH_FD, bytes, sizeof bytes), EBADF);
    FAILS(read(1 << 30, bytes, sizeof bytes), EBADF);
    FAILS(readv(NO_SUCH_FD, &iov, 1), EBADF);
    FAILS(close(NO_SUCH_FD), EBADF);
    FAILS(close(-1), EBADF);
    FAILS(dup(NO_SUCH_FD), EBADF);
    FAILS(dup2(NO_SUCH_FD, 5), EBADF);
    FAILS(dup3(0, 0, 0), EINVAL);
    FAILS(fcntl(NO_SUCH_FD, F_DUPFD, 0), EBADF);
    FAILS(bind(NO_SUCH_FD, name, address.len), EBADF);
    FAILS(listen(NO_SUCH_FD, 1), EBADF);
    FAILS(connect(NO_SUCH_FD, name, address.len), EBADF);
    FAILS(accept(NO_SUCH_FD, NULL, NULL), EBADF);
    FAILS(shutdown(NO_SUCH_FD, SHUT_RD), EBADF);
    FAILS(socket(AF_UNIX, 99, 0), EINVAL);
    int file = MUST(open("/dev/null", O_RDWR));
    FAILS(listen(file, 1), ENOTSOCK);
    FAILS(send(file, bytes, sizeof bytes, 0), ENOTSOCK);
    MUST(close(file));

    /* On an open connection, with traffic around it. */
    struct ends ends = connect_ends("failures.open", SOCK_STREAM);
    exchange(&ends.client, &ends.server, 20);
    FAILS(recv(ends.server.fd, bytes, sizeof bytes, MSG_DONTWAIT), EAGAIN);
    FAILS(recvmsg(ends.server.fd, &message, MSG_DONTWAIT), EAGAIN);
    FAILS(connect(ends.client.fd, name, address.len), EISCONN);
    MUST(close(bound));
    FAILS(fcntl(ends.client.fd, F_DUPFD, -1), EINVAL);
    volatile int negative = -1, too_many = 1025; /* volatile: compilers warn of what this is about */
    FAILS(readv(ends.server.fd, &iov, negative), EINVAL);
    FAILS(writev(ends.server.fd, &iov, too_many), EINVAL);
    message.msg_iovlen = 1025;
    FAILS(sendmsg(ends.client.fd, &message, 0), EMSGSIZE);
    exchange(&ends.client, &ends.server, 21);
    close_ends(&ends);
}

/* Addresses that cannot be read or written: an error for the program, never a crash in whoever looks on. */
void case_bad_memory(void) {
    long page = sysconf(_SC_PAGESIZE);
    char *memory = mmap(NULL, 2 * (size_t)page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(munmap(memory + page, (size_t)page));
    char *edge = memory + page - 100, *volatile bad = (char *)16;
    struct ends ends = connect_ends("bad_memory", SOCK_STREAM);
    struct iovec iov[2] = {{edge, 200}, {bad, 10}};
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};

    FAILS(send(ends.client.fd, bad, 10, 0), EFAULT);
    FAILS(send(ends.client.fd, edge, 200, 0), EFAULT);
    FAILS(write(ends.client.fd, bad, 10), EFAULT);
    FAILS(writev(ends.client.fd, (struct iovec *)bad, 1), EFAULT);
    FAILS(writev(ends.client.fd, iov, 2), EFAULT);
    FAILS(sendmsg(ends.client.fd, &message, 0), EFAULT);
    FAILS(sendmsg(ends.client.fd, (struct msghdr *)bad, 0), EFAULT);
    FAILS(recvmsg(ends.client.fd, (struct msghdr *)bad, 0), EFAULT);
    FAILS(readv(ends.client.fd, (struct iovec *)bad, 1), EFAULT);
    FAILS(connect(ends.client.fd, (struct sockaddr *)bad, 30), EFAULT);
    FAILS(bind(ends.client.fd, (struct sockaddr *)bad, 30), EFAULT);

    /* The last 100 bytes before the unmapped page move like any others. */
    fill(edge, 100);
    CHECK(send_on(&ends.client, edge, 100, 0) == 100);
    CHECK(recv_on(&ends.server, edge, 100, 0) == 100);
    CHECK(send_on(&ends.client, edge, 100, 0) == 100);
    CHECK(recv_on(&ends.server, edge, 50, 0) == 50);
    CHECK(readv_on(&ends.server, &(struct iovec){edge, 100}, 1) == 50);

    /* A message that does not fill its buffer never touches the rest of it. */
    CHECK(send_on(&ends.client, edge, 60, 0) == 60);
    CHECK(recv_on(&ends.server, edge, 4096, 0) == 60);
    CHECK(send_on(&ends.client, edge, 60, 0) == 60);
    iov[0] = (struct iovec){edge, 60};
    CHECK(readv_on(&ends.server, iov, 2) == 60);

    /* Where a result is an address, it may be bad too. */
    struct address address = address_in_dir("bad_memory.accept");
    int listener = listen_at(&address, SOCK_STREAM);
    struct conn client = connect_to(&address, SOCK_STREAM);
    FAILS(accept(listener, (struct sockaddr *)bad, (socklen_t *)bad), EFAULT);
    close_conn(&client);
    MUST(close(listener));
    close_ends(&ends);
    MUST(munmap(memory, (size_t)page));
}

static volatile sig_atomic_t pipe_signals;

static void count_pipe_signal(int signal) {
    (void)signal;
    pipe_signals++;
}

/* SIGPIPE comes when it does untraced: once for each such call, not with MSG_NOSIGNAL. */
void case_broken_pipe(void) {
    char bytes[16] = "gone";
    struct iovec iov = {bytes, sizeof bytes};
    struct ends ends = connect_ends("broken_pipe", SOCK_STREAM);
    exchange(&ends.client, &ends.server, 100);
    signal(SIGPIPE, count_pipe_signal);
    close_conn(&ends.server);
    FAILS(send(ends.client.fd, bytes, sizeof bytes, MSG_NOSIGNAL), EPIPE);
    CHECK(pipe_signals == 0);
    FAILS(send(ends.client.fd, bytes, sizeof bytes, 0), EPIPE);
    CHECK(pipe_signals == 1);
    FAILS(write(ends.client.fd, bytes, sizeof bytes), EPIPE);
    CHECK(pipe_signals == 2);
    FAILS(sendmsg(ends.client.fd, &(struct msghdr){.msg_iov = &iov, .msg_iovlen = 1}, 0), EPIPE);
    CHECK(pipe_signals == 3);
    signal(SIGPIPE, SIG_DFL);
    close_conn(&ends.client);
}
