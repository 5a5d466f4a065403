#define _GNU_SOURCE
#include "truth.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* Beyond this a line is built in allocated memory, which a signal handler must not ask for. */
enum { SMALL = 256, LINE_OVERHEAD = 256 };

static const char *account_file;
static int account = -1;
static atomic_int failures;

void truth_begin_again(void) {
    account = MUST(open(account_file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
}

void truth_begin(const char *file) {
    account_file = file;
    truth_begin_again();
}

int truth_descriptor(void) {
    return account;
}

/* A line goes out in one write(), so that threads, signal handlers and children never mix theirs. */
static void put_line(const char *line, size_t len) {
    int saved = errno;
    if (write(account, line, len) != (ssize_t)len) abort();
    errno = saved;
}

static char *put_text(char *at, const char *text) {
    while (*text) {
        if (*text == '"' || *text == '\\') *at++ = '\\';
        *at++ = *text++;
    }
    return at;
}

static char *put_raw(char *at, const char *text) {
    size_t len = strlen(text);
    memcpy(at, text, len);
    return at + len;
}

static char *put_number(char *at, unsigned long number) {
    char digits[24];
    int n = 0;
    do digits[n++] = '0' + number % 10;
    while (number /= 10);
    while (n) *at++ = digits[--n];
    return at;
}

void truth_moved(const struct conn *conn, const char *direction, const char *call, const void *bytes, ssize_t moved) {
    static const char HEX[] = "0123456789abcdef";
    if (moved < 0 || (moved == 0 && conn->type == SOCK_STREAM)) return;
    int saved = errno;
    char small[2 * SMALL + LINE_OVERHEAD];
    char *line = moved <= SMALL ? small : malloc(2 * (size_t)moved + LINE_OVERHEAD);
    char *at = put_raw(line, "{\"truth\":\"moved\",\"inode\":");
    at = put_number(at, conn->inode);
    at = put_number(put_raw(at, ",\"pid\":"), getpid());
    at = put_raw(put_raw(at, ",\"direction\":\""), direction);
    at = put_raw(put_raw(at, "\",\"call\":\""), call);
    at = put_raw(at, "\",\"data\":\"");
    for (ssize_t i = 0; i < moved; i++) {
        unsigned char byte = ((const unsigned char *)bytes)[i];
        *at++ = HEX[byte >> 4];
        *at++ = HEX[byte & 15];
    }
    at = put_raw(at, "\"}\n");
    put_line(line, at - line);
    if (line != small) free(line);
    errno = saved;
}

static void put_about(const char *truth, int fd, unsigned long inode, int type, const char *how, const char *path) {
    int saved = errno;
    char line[2048], *at = line;
    at += sprintf(at, "{\"truth\":\"%s\",\"pid\":%d,\"fd\":%d,\"inode\":%lu,\"type\":%d,\"how\":\"%s\",\"path\":\"",
                  truth, getpid(), fd, inode, type, how);
    at = put_raw(put_text(at, path), "\"}\n");
    put_line(line, at - line);
    errno = saved;
}

void truth_open(const struct conn *conn, const char *how, const char *path) {
    put_about("open", conn->fd, conn->inode, conn->type, how, path);
}

void truth_listen(int fd, const char *how, const char *path) {
    put_about("listen", fd, inode_of(fd), 0, how, path);
}

void truth_close(const struct conn *conn, const char *how) {
    put_about("close", conn->fd, conn->inode, conn->type, how, "");
}

void truth_note(const char *name, long long number) {
    char line[256];
    put_line(line, sprintf(line, "{\"truth\":\"note\",\"pid\":%d,\"name\":\"%s\",\"number\":%lld}\n", getpid(), name, number));
}

void truth_check(int ok, const char *what, const char *file, int line) {
    if (ok) return;
    int saved = errno;
    char text[1024], *at = text;
    at += sprintf(at, "{\"truth\":\"failed\",\"pid\":%d,\"errno\":%d,\"at\":\"%s:%d\",\"what\":\"", getpid(), saved, file, line);
    at = put_raw(put_text(at, what), "\"}\n");
    put_line(text, at - text);
    atomic_fetch_add(&failures, 1);
    errno = saved;
}

int truth_failures(void) {
    return atomic_load(&failures);
}

long must_succeed(long result, const char *what, const char *file, int line) {
    if (result != -1) return result;
    int saved = errno;
    fprintf(stderr, "workload: %s:%d: %s: %s\n", file, line, what, strerror(saved));
    if (account >= 0) {
        errno = saved;
        truth_check(0, what, file, line);
    }
    _exit(2);
}

unsigned long inode_of(int fd) {
    struct stat status;
    MUST(fstat(fd, &status));
    return status.st_ino;
}
