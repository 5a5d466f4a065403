/* What returns twice: vfork(2) and sigsetjmp(3). */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <unistd.h>

static __thread sigjmp_buf back;
static __thread volatile sig_atomic_t armed;

/* Calls `blocked`, which jump_back, in a signal handler, leaves: 1 then, 0 when it returned. */
int leave_by_jump(void (*blocked)(void *), void *argument) {
    if (sigsetjmp(back, 1) != 0) return 1;
    armed = 1;
    blocked(argument);
    armed = 0;
    return 0;
}

/* For a handler. */
void jump_back(void) {
    if (!armed) return;
    armed = 0;
    siglongjmp(back, 1);
}

/* Has `in_child` run between vfork() and exec in the child, which then is another program; its process id. */
int vfork_and_execute(void (*in_child)(void *), void *argument, const char *path, char *const argv[]) {
    pid_t child = vfork();
    if (child == 0) {
        in_child(argument);
        execv(path, argv);
        _exit(98);
    }
    return child;
}
