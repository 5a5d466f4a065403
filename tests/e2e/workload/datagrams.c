/* Datagrams: every message is its own, whoever it comes from. */
#define _GNU_SOURCE
#include "cases.h"
#include "endpoint.h"
#include "transfer.h"

#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* A connected client, and a server that reads message by message; an empty message is one too. */
void case_datagrams(void) {
    static const size_t LENGTHS[] = {1, 100, 0, 5000, 60000, 7};
    static char sent[60000], got[60000];
    struct address address = address_in_dir("datagrams");
    struct conn server = bind_datagram(&address);
    struct conn client = connect_to(&address, SOCK_DGRAM);
    for (size_t i = 0; i < sizeof LENGTHS / sizeof *LENGTHS; i++) {
        fill(sent, LENGTHS[i]);
        CHECK(send_on(&client, sent, LENGTHS[i], 0) == (ssize_t)LENGTHS[i]);
    }
    for (size_t i = 0; i < sizeof LENGTHS / sizeof *LENGTHS; i++) {
        struct iovec iov[2] = {{got, 50}, {got + 50, sizeof got - 50}};
        ssize_t n = i % 3 == 0   ? recv_on(&server, got, sizeof got, 0)
                    : i % 3 == 1 ? read_on(&server, got, sizeof got)
                                 : recvmsg_on(&server, &(struct msghdr){.msg_iov = iov, .msg_iovlen = 2}, 0);
        CHECK(n == (ssize_t)LENGTHS[i]);
    }
    close_conn(&client);
    close_conn(&server);
}

/* Two clients with names of their own, one server that answers each at its address. */
void case_datagram_reply(void) {
    struct address server_address = address_in_dir("replies");
    struct conn server = bind_datagram(&server_address);
    for (int i = 0; i < 2; i++) {
        char sent[80], got[200];
        struct address client_address = address_in_dir(i ? "replies.b" : "replies.a");
        struct conn client = bind_datagram(&client_address);
        fill(sent, sizeof sent);
        struct sockaddr *to = (struct sockaddr *)&server_address.un;
        CHECK(sendto_on(&client, sent, sizeof sent, to, server_address.len) == sizeof sent);
        struct iovec iov = {sent, 60};
        struct msghdr message = {.msg_name = to, .msg_namelen = server_address.len, .msg_iov = &iov, .msg_iovlen = 1};
        CHECK(sendmsg_on(&client, &message, 0) == 60);

        struct sockaddr_un from;
        socklen_t from_len = sizeof from;
        CHECK(recvfrom_on(&server, got, sizeof got, (struct sockaddr *)&from, &from_len) == sizeof sent);
        CHECK(from_len == client_address.len && memcmp(&from, &client_address.un, from_len) == 0);
        message = (struct msghdr){.msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &iov, .msg_iovlen = 1};
        CHECK(recvmsg_on(&server, &message, 0) == 60);
        CHECK(sendto_on(&server, sent, 33, (struct sockaddr *)&from, from_len) == 33);
        CHECK(recv_on(&client, got, sizeof got, 0) == 33);
        close_conn(&client);
    }
    close_conn(&server);
}

/* A buffer too short gets the front of a message; the rest is gone, and was never the program's. */
void case_datagram_truncated(void) {
    char sent[500], got[100];
    struct address address = address_in_dir("truncated");
    struct conn server = bind_datagram(&address);
    struct conn client = connect_to(&address, SOCK_DGRAM);
    fill(sent, sizeof sent);
    for (int i = 0; i < 3; i++) CHECK(send_on(&client, sent, sizeof sent, 0) == sizeof sent);
    CHECK(recv_on(&server, got, sizeof got, 0) == sizeof got);
    CHECK(recv_on(&server, got, sizeof got, MSG_TRUNC) == sizeof sent);
    struct iovec iov = {got, 60};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    CHECK(recvmsg_on(&server, &message, 0) == 60);
    CHECK(message.msg_flags & MSG_TRUNC);
    int waiting = 0;
    CHECK(ioctl(server.fd, FIONREAD, &waiting) == 0 && waiting == 0);
    close_conn(&client);
    close_conn(&server);
}
