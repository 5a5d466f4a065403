/* The program's own account of what it did: one JSON object a line, written from the results of its calls. */
#pragma once

#include <stddef.h>
#include <sys/types.h>

/* A socket that moves bytes. The inode number names it for as long as it lives, whatever its descriptors are. */
struct conn {
    int fd;
    int type; /* SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET */
    unsigned long inode;
};

/* Opens the account at `file`, appending; again after the program has closed its descriptors. */
void truth_begin(const char *file);
void truth_begin_again(void);
int truth_descriptor(void);

/* {"truth":"open"}: `how` is the call that made the connection, `path` as events.jsonl writes it. */
void truth_open(const struct conn *conn, const char *how, const char *path);
/* {"truth":"listen"} */
void truth_listen(int fd, const char *how, const char *path);
/* {"truth":"moved"}: the first `moved` bytes of `bytes`. Safe in a signal handler up to 256 bytes. Keeps errno. */
void truth_moved(const struct conn *conn, const char *direction, const char *call, const void *bytes, ssize_t moved);
/* {"truth":"close"}: the last descriptor of the connection is gone; `how` is the call. */
void truth_close(const struct conn *conn, const char *how);
/* {"truth":"note"}: a name and a number for the test to look at. */
void truth_note(const char *name, long long number);

/* Says what did not go as it does untraced. The program goes on and ends with status 1. */
void truth_check(int ok, const char *what, const char *file, int line);
#define CHECK(condition) truth_check((condition) != 0, #condition, __FILE__, __LINE__)
int truth_failures(void);

/* Ends the program with status 2 where a call that the case stands on fails. */
long must_succeed(long result, const char *what, const char *file, int line);
#define MUST(call) must_succeed((long)(call), #call, __FILE__, __LINE__)

unsigned long inode_of(int fd);
