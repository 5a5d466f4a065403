#define _GNU_SOURCE
#include "endpoint.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

const char *socket_dir;

/* Bytes outside 32..126, and a backslash, are expected as \xNN. */
static void escape(char *to, const unsigned char *from, size_t len) {
    for (size_t i = 0; i < len; i++) {
        if (from[i] >= 32 && from[i] <= 126 && from[i] != '\\') *to++ = from[i];
        else to += sprintf(to, "\\x%02x", from[i]);
    }
    *to = 0;
}

struct address address_of_path(const char *path) {
    struct address address = {.un.sun_family = AF_UNIX};
    size_t len = strlen(path);
    memcpy(address.un.sun_path, path, len);
    address.len = offsetof(struct sockaddr_un, sun_path) + len + (len < sizeof address.un.sun_path);
    char absolute[512] = "";
    if (path[0] != '/') {
        MUST(getcwd(absolute, 256) ? 0 : -1);
        strcat(absolute, "/");
    }
    strcat(absolute, path);
    escape(address.expected, (unsigned char *)absolute, strlen(absolute));
    return address;
}

struct address address_in_dir(const char *name) {
    char path[sizeof(struct sockaddr_un)];
    snprintf(path, sizeof path, "%s/%s", socket_dir, name);
    return address_of_path(path);
}

struct address address_of_abstract(const void *name, size_t len) {
    struct address address = {.un.sun_family = AF_UNIX};
    memcpy(address.un.sun_path + 1, name, len);
    address.len = offsetof(struct sockaddr_un, sun_path) + 1 + len;
    address.expected[0] = '@';
    escape(address.expected + 1, name, len);
    return address;
}

struct conn conn_of(int fd, int type) {
    return (struct conn){.fd = fd, .type = type, .inode = inode_of(fd)};
}

int listen_at(const struct address *address, int type) {
    int fd = MUST(socket(AF_UNIX, type, 0));
    MUST(bind(fd, (const struct sockaddr *)&address->un, address->len));
    MUST(listen(fd, 128));
    truth_listen(fd, "listen", address->expected);
    return fd;
}

struct conn connect_to(const struct address *address, int type) {
    int fd = MUST(socket(AF_UNIX, type, 0));
    MUST(connect(fd, (const struct sockaddr *)&address->un, address->len));
    struct conn conn = conn_of(fd, type);
    truth_open(&conn, "connect", address->expected);
    return conn;
}

static int type_of(int fd) {
    int type = 0;
    socklen_t len = sizeof type;
    MUST(getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len));
    return type;
}

struct conn accept_from(int listener, const struct address *address) {
    int fd = MUST(accept(listener, NULL, NULL));
    struct conn conn = conn_of(fd, type_of(fd));
    truth_open(&conn, "accept", address->expected);
    return conn;
}

struct conn accept4_from(int listener, const struct address *address, int flags) {
    struct sockaddr_un peer;
    socklen_t len = sizeof peer;
    int fd = MUST(accept4(listener, (struct sockaddr *)&peer, &len, flags));
    struct conn conn = conn_of(fd, type_of(fd));
    truth_open(&conn, "accept4", address->expected);
    return conn;
}

struct conn bind_datagram(const struct address *address) {
    int fd = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    MUST(bind(fd, (const struct sockaddr *)&address->un, address->len));
    truth_listen(fd, "bind", address->expected);
    return conn_of(fd, SOCK_DGRAM);
}

struct ends connect_ends(const char *name, int type) {
    struct address address = address_in_dir(name);
    int listener = listen_at(&address, type);
    struct ends ends;
    ends.client = connect_to(&address, type);
    ends.server = accept_from(listener, &address);
    MUST(close(listener));
    return ends;
}

void close_conn(const struct conn *conn) {
    MUST(close(conn->fd));
    truth_close(conn, "close");
}

void close_ends(const struct ends *ends) {
    close_conn(&ends->client);
    close_conn(&ends->server);
}

void fill(void *buffer, size_t len) {
    static atomic_uint calls;
    uint64_t state = 0x9e3779b97f4a7c15u * (atomic_fetch_add(&calls, 1) + 1) + (uint64_t)getpid();
    for (size_t i = 0; i < len; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        ((unsigned char *)buffer)[i] = (unsigned char)(state >> 32);
    }
}
