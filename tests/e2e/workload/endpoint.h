/* Making, naming and ending connections, with their account. */
#pragma once

#include "truth.h"

#include <sys/socket.h>
#include <sys/un.h>

struct address {
    struct sockaddr_un un;
    socklen_t len;
    char expected[512]; /* the path as events.jsonl writes it */
};

/* The directory for sockets, from the command line. */
extern const char *socket_dir;

/* A file of this name in the directory for sockets. */
struct address address_in_dir(const char *name);
/* A path as it is; a relative one is expected under the working directory. Up to 108 bytes, then without NUL. */
struct address address_of_path(const char *path);
struct address address_of_abstract(const void *name, size_t len);

struct conn conn_of(int fd, int type);

int listen_at(const struct address *address, int type);
struct conn connect_to(const struct address *address, int type);
struct conn accept_from(int listener, const struct address *address);
struct conn accept4_from(int listener, const struct address *address, int flags);
/* A datagram socket bound to an address. */
struct conn bind_datagram(const struct address *address);

/* The two ends of one connection, both in this process. */
struct ends {
    struct conn client, server;
};
struct ends connect_ends(const char *name, int type);
void close_conn(const struct conn *conn);
void close_ends(const struct ends *ends);

/* `len` bytes that no other call of this function gives. */
void fill(void *buffer, size_t len);
