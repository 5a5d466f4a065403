/* Does one thing after the other as a test says, so that the test can change the world in between.
 *
 * Commands are lines in the FIFO SOCKET_DIR/commands; each is answered by a note in the account, `did` with the
 * command's number from 1, and `took` with the nanoseconds that its calls took. */
#define _GNU_SOURCE
#include "cases.h"
#include "endpoint.h"
#include "transfer.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS = 256 };

static struct ends opened[CONNECTIONS];
static int datagram_ends[CONNECTIONS];

static long long nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void open_number(int number, const char *name) {
    opened[number] = connect_ends(name, SOCK_STREAM);
}

static void open_datagram(int number, const char *name) {
    struct address address = address_in_dir(name);
    opened[number].server = bind_datagram(&address);
    opened[number].client = connect_to(&address, SOCK_DGRAM);
    datagram_ends[number] = 1;
}

/* `count` messages of `len` bytes, client to server; after each the time that send() alone took is added up. */
static long long send_number(int number, int count, size_t len) {
    long long took = 0;
    char *bytes = malloc(len + 1), *got = malloc(len + 1);
    for (int i = 0; i < count; i++) {
        fill(bytes, len);
        long long before = nanoseconds();
        ssize_t sent = send(opened[number].client.fd, bytes, len, 0);
        took += nanoseconds() - before;
        truth_moved(&opened[number].client, "out", "send", bytes, sent);
        CHECK(sent == (ssize_t)len);
        CHECK(recv_on(&opened[number].server, got, len, MSG_WAITALL) == (ssize_t)len);
        CHECK(memcmp(bytes, got, len) == 0);
    }
    free(bytes);
    free(got);
    return took;
}

void case_steps(void) {
    struct address fifo = address_in_dir("commands");
    FILE *commands = fopen(fifo.un.sun_path, "r");
    char line[256], verb[32], name[128];
    if (!commands) MUST(-1);
    for (long long done = 1; fgets(line, sizeof line, commands); done++) {
        int number = 0, count = 0;
        size_t len = 0;
        long long took = 0;
        sscanf(line, "%31s %d", verb, &number);
        if (strcmp(verb, "open") == 0 && sscanf(line, "open %d %127s", &number, name) == 2) {
            open_number(number, name);
        } else if (strcmp(verb, "datagram") == 0 && sscanf(line, "datagram %d %127s", &number, name) == 2) {
            open_datagram(number, name);
        } else if (strcmp(verb, "listen") == 0 && sscanf(line, "listen %127s", name) == 1) {
            struct address address = address_in_dir(name);
            listen_at(&address, SOCK_STREAM);
        } else if (strcmp(verb, "send") == 0 && sscanf(line, "send %d %d %zu", &number, &count, &len) == 3) {
            took = send_number(number, count, len);
        } else if (strcmp(verb, "answer") == 0) {
            exchange(&opened[number].server, &opened[number].client, 32);
        } else if (strcmp(verb, "close") == 0) {
            close_ends(&opened[number]);
        } else {
            fprintf(stderr, "workload: no such step: %s", line);
            exit(2);
        }
        truth_note("took", took);
        truth_note("did", done);
    }
    fclose(commands);
}
