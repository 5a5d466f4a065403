/* Names of sockets, in every form that bind() and connect() take. */
#define _GNU_SOURCE
#include "cases.h"
#include "endpoint.h"
#include "transfer.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void exchange_at(const struct address *bound, const struct address *connected) {
    int listener = listen_at(bound, SOCK_STREAM);
    struct ends ends;
    ends.client = connect_to(connected, SOCK_STREAM);
    ends.server = accept_from(listener, bound);
    exchange(&ends.client, &ends.server, 50);
    exchange(&ends.server, &ends.client, 60);
    close_ends(&ends);
    MUST(close(listener));
}

void case_abstract_names(void) {
    char name[sizeof((struct sockaddr_un *)0)->sun_path - 1];
    int len = snprintf(name, sizeof name, "socktrace-e2e-%d", getpid());
    struct address plain = address_of_abstract(name, (size_t)len);
    exchange_at(&plain, &plain);

    memcpy(name + len, "\0\x01\xff/\\\"|", 7); /* a name is any bytes, NUL as well */
    struct address odd = address_of_abstract(name, (size_t)len + 7);
    exchange_at(&odd, &odd);

    memset(name + len, 'n', sizeof name - (size_t)len);
    struct address longest = address_of_abstract(name, sizeof name);
    exchange_at(&longest, &longest);

    /* The kernel picks a name for whoever binds without one. */
    int listener = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(bind(listener, &(struct sockaddr){.sa_family = AF_UNIX}, sizeof(sa_family_t)));
    MUST(listen(listener, 1));
    struct sockaddr_un given;
    socklen_t given_len = sizeof given;
    MUST(getsockname(listener, (struct sockaddr *)&given, &given_len));
    struct address picked = address_of_abstract(given.sun_path + 1, given_len - sizeof(sa_family_t) - 1);
    truth_listen(listener, "listen", picked.expected);
    struct ends ends;
    ends.client = connect_to(&picked, SOCK_STREAM);
    ends.server = accept_from(listener, &picked);
    exchange(&ends.client, &ends.server, 70);
    close_ends(&ends);
    MUST(close(listener));
}

void case_relative_path(void) {
    char before[512];
    MUST(getcwd(before, sizeof before) ? 0 : -1);
    MUST(chdir(socket_dir));
    struct address relative = address_of_path("relative");
    exchange_at(&relative, &relative);

    /* What a connection is called does not change with the working directory. */
    MUST(unlink("relative"));
    int listener = listen_at(&relative, SOCK_STREAM);
    struct conn client = connect_to(&relative, SOCK_STREAM);
    MUST(chdir(before));
    struct conn server = accept_from(listener, &relative);
    exchange(&client, &server, 40);
    close_conn(&client);
    close_conn(&server);
    MUST(close(listener));
}

/* A connection through a symlinked directory goes by the path that its program gave. */
void case_symlinked_directory(void) {
    char real[200], link[200];
    snprintf(real, sizeof real, "%s/real", socket_dir);
    snprintf(link, sizeof link, "%s/link", socket_dir);
    MUST(mkdir(real, 0700));
    MUST(symlink("real", link));
    struct address bound = address_in_dir("real/s"), connected = address_in_dir("link/s");
    exchange_at(&bound, &connected);
}

/* 108 bytes leave no room for the NUL that unix(7) says is not needed. */
void case_longest_path(void) {
    char path[sizeof((struct sockaddr_un *)0)->sun_path + 1];
    int len = snprintf(path, sizeof path, "%s/", socket_dir);
    memset(path + len, 'l', sizeof path - 1 - (size_t)len);
    path[sizeof path - 1] = 0;
    struct address longest = address_of_path(path);
    exchange_at(&longest, &longest);
}

void case_strange_path(void) {
    struct address strange = address_in_dir("ä | \"b\"\n\\x41");
    exchange_at(&strange, &strange);
}
