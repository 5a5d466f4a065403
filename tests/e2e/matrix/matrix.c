/* A program that puts itself under limits, filters, namespaces and onto small stacks, executes itself in every way, and
 * talks over AF_UNIX sockets in between.
 *
 *     matrix DIR WORD...
 *
 * The words are done one after the other; what each gave is a line on standard output, with the descriptors' numbers and
 * the errors' names, so that two runs can be compared. DIR is for sockets. `talk=NAME` says "NAME:HOW" in several ways and
 * prints `said NAME:HOW` for each that arrived. Linked with -z now, for the dynamic linker wants much room on the stack
 * when a function is called for the first time. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

extern char **environ;

static char *program, *dir;

/* One line at a time by one write(2): standard output may be shared with children. */
__attribute__((format(printf, 1, 2))) static void say(const char *format, ...) {
    char line[512];
    va_list values;
    va_start(values, format);
    int len = vsnprintf(line, sizeof line, format, values);
    va_end(values);
    if (len > 0 && write(1, line, (size_t)len) != len) _exit(99);
}

/* ---- what is said ---- */

/* What calls gave, to be printed where there is room on the stack. */
struct result {
    const char *what;
    long value;
    int error;
};
static struct result results[64];
static int result_count;
static char said[16][96];
static int said_count;

static long note(const char *what, long value) {
    results[result_count++] = (struct result){what, value, value < 0 ? errno : 0};
    return value;
}

static void print_results(void) {
    for (int i = 0; i < result_count; i++) {
        struct result *r = &results[i];
        if (r->value < 0) say("%s %s\n", r->what, strerrorname_np(r->error));
        else say("%s %ld\n", r->what, r->value);
    }
    for (int i = 0; i < said_count; i++) say("said %s\n", said[i]);
    result_count = said_count = 0;
}

/* No formatted printing: this runs on stacks of a few KiB. */
static size_t text_of(char *text, const char *name, const char *how) {
    /* None begins as another ends. */
    char *end = stpcpy(stpcpy(stpcpy(stpcpy(text, name), ":"), how), ".");
    return (size_t)(end - text);
}

static void arrived(const char *text, const char *got, long len) {
    if (len == (long)strlen(text) && memcmp(text, got, (size_t)len) == 0) strcpy(said[said_count++], text);
}

static void exchange(int from, int to, const char *name, const char *prefix) {
    static char text[96], got[96];
    static const struct how {
        const char *name;
    } hows[] = {{"send"}, {"write"}, {"sendmsg"}};
    for (int how = 0; how < 3; how++) {
        struct iovec iov = {.iov_base = text}, room = {got, sizeof got};
        struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1}, into = {.msg_iov = &room, .msg_iovlen = 1};
        char *end = stpcpy(text, prefix);
        size_t len = text_of(end, name, hows[how].name) + (size_t)(end - text);
        iov.iov_len = len;
        long sent = how == 0 ? send(from, text, len, 0) : how == 1 ? write(from, text, len) : sendmsg(from, &message, 0);
        note(hows[how].name, sent);
        if (sent != (long)len) continue;
        long got_len = how == 0 ? recv(to, got, sizeof got, 0)
                       : how == 1 ? read(to, got, sizeof got)
                                  : recvmsg(to, &into, 0);
        note("receive", got_len);
        arrived(text, got, got_len);
    }
}

/* A pair, then a connection by name, if there are descriptors for them. */
static void talk(const char *name) {
    int pair[2];
    if (note("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) == 0) {
        note("pair", pair[0] * 100 + pair[1]);
        exchange(pair[0], pair[1], name, "pair-");
        note("close", close(pair[0]));
        note("end of file", read(pair[1], said[15], 1));
        note("close", close(pair[1]));
    }
    static struct sockaddr_un address;
    address.sun_family = AF_UNIX;
    stpcpy(stpcpy(stpcpy(address.sun_path, dir), "/"), name);
    socklen_t len = sizeof address;
    int listener = (int)note("socket", socket(AF_UNIX, SOCK_STREAM, 0));
    if (listener >= 0 && note("bind", bind(listener, (struct sockaddr *)&address, len)) == 0) {
        note("listen", listen(listener, 1));
        int client = (int)note("socket", socket(AF_UNIX, SOCK_STREAM, 0));
        if (client >= 0 && note("connect", connect(client, (struct sockaddr *)&address, len)) == 0) {
            int server = (int)note("accept", accept(listener, NULL, NULL));
            if (server >= 0) {
                exchange(client, server, name, "name-");
                note("shutdown", shutdown(server, SHUT_WR));
                note("close", close(server));
            }
        }
        if (client >= 0) note("close", close(client));
        unlink(address.sun_path);
    }
    if (listener >= 0) note("close", close(listener));
    int lowest = (int)note("lowest", dup(1));
    if (lowest >= 0) close(lowest);
}

/* ---- stacks ---- */

static char kind_of_stack;
static size_t stack_size;
static void (*job)(const char *);
static const char *job_argument;

static void *on_thread(void *argument) {
    job(argument);
    return NULL;
}

static void on_signal(int signal) {
    (void)signal;
    job(job_argument);
}

static void on_context(void) {
    job(job_argument);
}

/* A stack with nothing below it. */
static char *make_stack(size_t size) {
    size_t page = 4096, whole = (size + page - 1) / page * page;
    char *memory = mmap(NULL, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) {
        say("stack %s\n", strerrorname_np(errno));
        return NULL;
    }
    return memory + page + whole - size;
}

/* Does the job on the stack that `on=` has named, or on this one. */
static void do_job(void (*function)(const char *), const char *argument) {
    char kind = kind_of_stack;
    char *stack = kind ? make_stack(stack_size) : NULL;
    kind_of_stack = 0;
    job = function, job_argument = argument;
    if (kind && !stack) return;
    if (kind == 't') {
        pthread_attr_t attributes;
        pthread_t thread;
        pthread_attr_init(&attributes);
        int error = pthread_attr_setstack(&attributes, stack, stack_size);
        if (!error) error = pthread_create(&thread, &attributes, on_thread, (void *)argument);
        if (error) say("thread %s\n", strerrorname_np(error));
        else pthread_join(thread, NULL);
    } else if (kind == 's') {
        stack_t alternate = {.ss_sp = stack, .ss_size = stack_size}, none = {.ss_flags = SS_DISABLE};
        struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
        if (sigaltstack(&alternate, NULL) != 0) {
            say("sigaltstack %s\n", strerrorname_np(errno));
            return;
        }
        sigaction(SIGUSR1, &action, NULL);
        raise(SIGUSR1);
        sigaltstack(&none, NULL);
    } else if (kind == 'c') {
        static ucontext_t here, there;
        getcontext(&there);
        there.uc_stack.ss_sp = stack;
        there.uc_stack.ss_size = stack_size;
        there.uc_link = &here;
        makecontext(&there, on_context, 0);
        swapcontext(&here, &there);
    } else {
        function(argument);
    }
}

/* ---- limits, filters, namespaces, users ---- */

static const struct {
    const char *name;
    int resource;
} limits[] = {
    {"nofile", RLIMIT_NOFILE},   {"fsize", RLIMIT_FSIZE}, {"as", RLIMIT_AS},     {"stack", RLIMIT_STACK},
    {"memlock", RLIMIT_MEMLOCK}, {"nproc", RLIMIT_NPROC}, {"data", RLIMIT_DATA}, {"core", RLIMIT_CORE},
    {"sigpending", RLIMIT_SIGPENDING},
};

#define ALLOW(call) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##call, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

/* What `talk` takes, and leaving. */
#define NEEDED \
    ALLOW(socketpair), ALLOW(socket), ALLOW(bind), ALLOW(listen), ALLOW(connect), ALLOW(accept), ALLOW(sendto), \
        ALLOW(recvfrom), ALLOW(read), ALLOW(write), ALLOW(sendmsg), ALLOW(recvmsg), ALLOW(shutdown), ALLOW(close), \
        ALLOW(dup), ALLOW(unlink), ALLOW(exit_group), ALLOW(rt_sigreturn)

static void filter(const char *kind) {
    struct sock_filter all[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_filter needed[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)), NEEDED,
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)};
    /* What programs that were there before the call was do without. */
    struct sock_filter old[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_memfd_create, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_close_range, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pidfd_open, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    size_t count = sizeof needed / sizeof *needed;
    struct sock_fprog code = {1, all};
    if (strcmp(kind, "kill") == 0 || strcmp(kind, "refuse") == 0) code = (struct sock_fprog){(unsigned short)count, needed};
    if (strcmp(kind, "refuse") == 0) needed[count - 1].k = SECCOMP_RET_ERRNO | EPERM;
    if (strcmp(kind, "old") == 0) code = (struct sock_fprog){sizeof old / sizeof *old, old};
    int result = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (result == 0) result = prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &code);
    if (result != 0) say("filter %s\n", strerrorname_np(errno));
}

/* SECCOMP_MODE_STRICT leaves read(2), write(2) and _exit(2). */
static void talk_strictly(const char *name) {
    static char text[96], got[96];
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) return;
    size_t len = text_of(text, name, "strict"), before = text_of(got, name, "before");
    if (write(pair[0], got, before) == (long)before && read(pair[1], text, before) == (long)before)
        say("said %s:before.\n", name);
    len = text_of(text, name, "strict");
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) {
        say("strict %s\n", strerrorname_np(errno));
        return;
    }
    if (write(pair[0], text, len) == (long)len && read(pair[1], got, sizeof got) == (long)len)
        say("strictly said %s\n", text);
    syscall(SYS_exit, 7);
}

static void enter(const char *kind) {
    static const struct {
        const char *name;
        int flag;
    } kinds[] = {{"user", CLONE_NEWUSER}, {"mount", CLONE_NEWNS}, {"pid", CLONE_NEWPID},
                 {"net", CLONE_NEWNET},   {"ipc", CLONE_NEWIPC},  {"uts", CLONE_NEWUTS}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(kinds[i].name, kind) != 0) continue;
        if (unshare(kinds[i].flag) != 0) say("unshare %s %s\n", kind, strerrorname_np(errno));
    }
}

/* ---- execution ---- */

static void exit_as(int status) {
    if (WIFEXITED(status)) exit(WEXITSTATUS(status));
    say("ended by signal %d\n", WTERMSIG(status));
    exit(98);
}

static void wait_and_exit(pid_t child) {
    int status;
    if (child < 0) {
        say("no child: %s\n", strerrorname_np(errno));
        exit(97);
    }
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    exit_as(status);
}

static char **words; /* what the next program gets */
static char **environment;
static const char *name_in_path;
static int own_file = -1;

static char **environment_of(const char *kind) {
    if (strcmp(kind, "null") == 0) return NULL;
    if (strcmp(kind, "empty") == 0) return calloc(1, sizeof(char *));
    if (strcmp(kind, "big") == 0) {
        enum { VARIABLES = 2100, LEN = 16 };
        char **many = calloc(VARIABLES + 1, sizeof *many), *text = calloc(VARIABLES, LEN);
        for (int i = 0; i < VARIABLES; i++) {
            many[i] = text + i * LEN;
            snprintf(many[i], LEN, "V%d=%d", i, i);
        }
        return many;
    }
    return environ;
}

/* On stacks of a few KiB as well. */
static void do_execute(const char *kind) {
    if (strcmp(kind, "execve") == 0) execve(program, words, environment);
    if (strcmp(kind, "execv") == 0) execv(program, words);
    if (strcmp(kind, "execvp") == 0) execvp(name_in_path, words);
    if (strcmp(kind, "execvpe") == 0) execvpe(name_in_path, words, environment);
    if (strcmp(kind, "fexecve") == 0) fexecve(own_file, words, environment);
    if (strcmp(kind, "execveat") == 0) syscall(SYS_execveat, own_file, "", words, environment, AT_EMPTY_PATH);
    if (strcmp(kind, "syscall") == 0) syscall(SYS_execve, program, words, environment);
    note(kind, -1);
}

static char *command_line(void) {
    static char line[4096];
    char *end = line;
    for (char **word = words; *word; word++) end = stpcpy(stpcpy(stpcpy(end, "'"), *word), "' ");
    return line;
}

/* execle(3) takes the environment from behind the NULL. */
static void execute_by_list(char **w) {
    int count = 0;
    while (w[count]) count++;
    if (count == 4) execle(program, w[0], w[1], w[2], w[3], NULL, environment);
    else if (count == 5) execle(program, w[0], w[1], w[2], w[3], w[4], NULL, environment);
    else if (count == 6) execle(program, w[0], w[1], w[2], w[3], w[4], w[5], NULL, environment);
    else say("execle for %d words is not written\n", count);
}

static void execute(const char *kind) {
    char *w[12] = {0};
    for (int i = 0; i < 11 && words[i]; i++) w[i] = words[i];
    /* Those that have no parameter for it take it from here. */
    int has_parameter = strcmp(kind, "execve") == 0 || strcmp(kind, "execvpe") == 0 || strcmp(kind, "fexecve") == 0 ||
                        strcmp(kind, "execveat") == 0 || strcmp(kind, "syscall") == 0 || strcmp(kind, "execle") == 0 ||
                        strcmp(kind, "posix_spawn") == 0 || strcmp(kind, "vfork") == 0;
    if (!has_parameter) environ = environment;
    name_in_path = program;
    if (strncmp(kind, "execvp", 6) == 0 || strcmp(kind, "execlp") == 0) {
        static char path[512];
        char *slash = strrchr(program, '/');
        snprintf(path, sizeof path, "/nowhere:%.*s", (int)(slash - program), program);
        if (slash == program) strcpy(path, "/nowhere:/");
        setenv("PATH", path, 1);
        name_in_path = slash + 1;
    }
    if (strcmp(kind, "fexecve") == 0 || strcmp(kind, "execveat") == 0) own_file = open(program, O_PATH | O_CLOEXEC);
    if (strcmp(kind, "execl") == 0) execl(program, w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], NULL);
    else if (strcmp(kind, "execlp") == 0)
        execlp(name_in_path, w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], NULL);
    else if (strcmp(kind, "execle") == 0) execute_by_list(w);
    else if (strcmp(kind, "posix_spawn") == 0) {
        pid_t child;
        int error = posix_spawn(&child, program, NULL, NULL, words, environment);
        if (error) say("posix_spawn %s\n", strerrorname_np(error));
        else wait_and_exit(child);
    } else if (strcmp(kind, "system") == 0) {
        int status = system(command_line());
        if (status == -1) say("system %s\n", strerrorname_np(errno));
        else exit_as(status);
    } else if (strcmp(kind, "popen") == 0) {
        FILE *file = popen(command_line(), "r");
        char line[512];
        if (!file) say("popen %s\n", strerrorname_np(errno));
        else {
            while (fgets(line, sizeof line, file)) say("popen: %s", line);
            exit_as(pclose(file));
        }
    } else if (strcmp(kind, "vfork") == 0) {
        pid_t child = vfork();
        if (child == 0) {
            execve(program, words, environment);
            _exit(96);
        }
        wait_and_exit(child);
    } else {
        do_job(do_execute, kind);
        print_results();
        exit(95);
    }
    say("%s %s\n", kind, strerrorname_np(errno));
    exit(95);
}

static void chroot_to(const char *root) {
    if (chroot(root) != 0 || chdir("/") != 0) {
        say("chroot %s\n", strerrorname_np(errno));
        return;
    }
    program = "/matrix";
    /* A folder of the same name is there: other runs may be in the same root. */
    dir = strrchr(dir, '/');
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    program = argv[0], dir = argv[1];
    environment = environ;
    int variables = 0;
    for (char **variable = environ; variable && *variable; variable++) variables += strncmp(*variable, "LD_PRELOAD=", 11) != 0;
    if (strcmp(argv[2], "again") == 0) say("again with %d variables\n", variables);
    for (int i = 2; i < argc; i++) {
        char *word = argv[i], *value = strchr(word, '=');
        value = value ? value + 1 : "";
        if (strncmp(word, "stderr=", 7) == 0) {
            int file = open(value, O_WRONLY | O_CREAT | O_APPEND, 0666);
            if (file >= 0) dup2(file, 2), close(file);
        } else if (strncmp(word, "talk=", 5) == 0) {
            do_job(talk, value);
            print_results();
        } else if (strncmp(word, "strict=", 7) == 0) {
            talk_strictly(value);
        } else if (strncmp(word, "on=", 3) == 0) {
            kind_of_stack = value[0];
            stack_size = strtoul(strchr(value, ':') + 1, NULL, 0);
            /* What the kernel puts there for a signal differs between machines. */
            if (kind_of_stack == 's') stack_size += (size_t)sysconf(_SC_MINSIGSTKSZ);
        } else if (strncmp(word, "filter=", 7) == 0) {
            filter(value);
        } else if (strncmp(word, "unshare=", 8) == 0) {
            enter(value);
        } else if (strncmp(word, "chroot=", 7) == 0) {
            chroot_to(value);
        } else if (strncmp(word, "setuid=", 7) == 0) {
            uid_t id = (uid_t)atoi(value);
            if (setgid(id) != 0 || setuid(id) != 0) say("setuid %s\n", strerrorname_np(errno));
        } else if (strcmp(word, "lock") == 0) {
            if (mlockall(MCL_FUTURE) != 0) say("mlockall %s\n", strerrorname_np(errno));
        } else if (strncmp(word, "env=", 4) == 0) {
            environment = environment_of(value);
        } else if (strcmp(word, "fork") == 0) {
            pid_t child = fork();
            if (child != 0) wait_and_exit(child);
        } else if (strncmp(word, "exec=", 5) == 0) {
            words = argv + i - 2;
            words[0] = program, words[1] = dir, words[2] = "again";
            execute(value);
        } else if (strcmp(word, "again") != 0) {
            int found = 0;
            for (size_t n = 0; n < sizeof limits / sizeof *limits; n++) {
                size_t len = strlen(limits[n].name);
                if (strncmp(word, limits[n].name, len) != 0 || word[len] != '=') continue;
                struct rlimit limit = {strtoul(value, NULL, 0), strtoul(value, NULL, 0)};
                if (setrlimit(limits[n].resource, &limit) != 0) say("%s %s\n", word, strerrorname_np(errno));
                found = 1;
            }
            if (!found) {
                say("no such word: %s\n", word);
                return 2;
            }
        }
    }
    say("end\n");
    return 3;
}
