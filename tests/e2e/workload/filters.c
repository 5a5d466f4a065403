/* Traffic on several paths, some of which a test asks for. */
#define _GNU_SOURCE
#include "cases.h"
#include "endpoint.h"
#include "transfer.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void exchange_between(const struct address *bound, const struct address *connected) {
    int listener = listen_at(bound, SOCK_STREAM);
    struct ends ends;
    ends.client = connect_to(connected, SOCK_STREAM);
    ends.server = accept_from(listener, bound);
    exchange(&ends.client, &ends.server, 91);
    exchange(&ends.server, &ends.client, 92);
    close_ends(&ends);
    MUST(close(listener));
    if (bound->un.sun_path[0]) MUST(unlink(bound->un.sun_path));
}

/* The socket SOCKET_DIR/real/s in every spelling, two others that are nearly called the same, and an abstract one. */
void case_filtered(void) {
    char real[200], link[200], abstract[100];
    snprintf(real, sizeof real, "%s/real", socket_dir);
    snprintf(link, sizeof link, "%s/link", socket_dir);
    MUST(mkdir(real, 0700));
    MUST(symlink("real", link));
    struct address plain = address_in_dir("real/s"), linked = address_in_dir("link/s");
    exchange_between(&plain, &plain);
    exchange_between(&plain, &linked);
    exchange_between(&linked, &plain);
    MUST(chdir(real));
    struct address relative = address_of_path("s");
    exchange_between(&relative, &relative);
    struct address nearly = address_in_dir("real/ss"), above = address_in_dir("s");
    exchange_between(&nearly, &nearly);
    exchange_between(&above, &above);
    int len = snprintf(abstract, sizeof abstract, "filtered:%s", socket_dir);
    struct address named = address_of_abstract(abstract, (size_t)len);
    exchange_between(&named, &named);

    char receiver_got[64];
    struct address datagram = address_in_dir("real/d");
    struct conn server = bind_datagram(&datagram);
    struct conn client = connect_to(&datagram, SOCK_DGRAM);
    CHECK(send_on(&client, "datagram", 8, 0) == 8);
    CHECK(recv_on(&server, receiver_got, sizeof receiver_got, 0) == 8);
    close_conn(&client);
    close_conn(&server);
}

/* More connections at once than a test allows descriptors for. */
void case_many_connections(void) {
    enum { MANY = 100 };
    static struct ends ends[MANY];
    struct address address = address_in_dir("many");
    int listener = listen_at(&address, SOCK_STREAM);
    for (int i = 0; i < MANY; i++) {
        ends[i].client = connect_to(&address, SOCK_STREAM);
        ends[i].server = accept_from(listener, &address);
    }
    for (int i = 0; i < MANY; i++) exchange(&ends[i].client, &ends[i].server, 20 + (size_t)i);
    for (int i = 0; i < MANY; i++) close_ends(&ends[i]);
    MUST(close(listener));
}
