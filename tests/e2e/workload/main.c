/* A program that makes every AF_UNIX call socktrace hooks, with known bytes, and keeps account of them.
 *
 *     workload ACCOUNT SOCKET_DIR CASE...
 *
 * It begins when there is a file SOCKET_DIR/go: Frida 17 sometimes hangs a program that ends while Frida leaves it.
 * ACCOUNT gets one JSON object a line (truth.h). Exit status 0: every call did what it does untraced. */
#include "cases.h"
#include "endpoint.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

char *program;

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {
#define ENTRY(name) {#name, case_##name},
    CASES(ENTRY)
#undef ENTRY
};

static int run_case(const char *name) {
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (strcmp(cases[i].name, name) == 0) {
            cases[i].run();
            return 0;
        }
    }
    fprintf(stderr, "workload: there is no case %s\n", name);
    return -1;
}

int main(int argc, char **argv) {
    /* What the cases that execute the program again see: which descriptors came along. */
    if (argc == 2 && strcmp(argv[1], "descriptors") == 0) {
        int inherited = 0;
        for (int fd = 3; fd < 1 << 16; fd++) inherited += dup2(fd, fd) == fd;
        return inherited;
    }
    if (argc < 4) {
        fprintf(stderr, "usage: workload ACCOUNT SOCKET_DIR CASE...\n");
        return 2;
    }
    program = argv[0];
    socket_dir = argv[2];
    signal(SIGPIPE, SIG_DFL);
    while (access(address_in_dir("go").un.sun_path, F_OK) != 0) nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    truth_begin(argv[1]);
    truth_note("start", getpid());
    for (int i = 3; i < argc; i++) {
        if (run_case(argv[i])) return 2;
    }
    truth_note("end", truth_failures());
    return truth_failures() != 0;
}
