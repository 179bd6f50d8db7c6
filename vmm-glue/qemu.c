/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/qemu.h"

#include <fcntl.h>
#include <jansson.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"

#define DEFAULT_PROGRAM "qemu-system-x86_64"
#define LIMIT_MS        10000
#define KVM_LIMIT_MS    5000
#define OUTPUT_MAX      (256u << 10)
/* What the firmware says when it has come through, and has no disk to go on with. */
#define FIRMWARE_DONE "No bootable device"

/* --- a program's output --- */

static int64_t now_ms(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return ts.tv_sec * INT64_C(1000) + ts.tv_nsec / 1000000;
}

static void become(const char *const *argv, int out) __attribute__((noreturn));
static void become(const char *const *argv, int out)
{
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        sigset_t none;

        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        dup2(null, STDIN_FILENO);
        dup2(out, STDOUT_FILENO);
        dup2(out, STDERR_FILENO);
        execvp(argv[0], (char *const *)argv);
        _exit(127);
}

/* Reads until it ends, @until was said, or the time is over, into @text; whether @until was said. */
static bool read_output(int fd, char *text, size_t size, const char *until, int limit_ms)
{
        int64_t end = now_ms() + limit_ms;
        size_t n = 0;

        text[0] = '\0';
        while (n + 1 < size) {
                struct pollfd p = {.fd = fd, .events = POLLIN};
                int64_t left = end - now_ms();
                ssize_t got;

                if (left <= 0 || poll(&p, 1, (int)left) == 0)
                        return false;
                got = read(fd, text + n, size - 1 - n);
                if (got < 0 && errno == EINTR)
                        continue;
                if (got <= 0)
                        return false;
                for (ssize_t i = 0; i < got; i++) /* a NUL would hide the rest */
                        if (text[n + (size_t)i] == '\0')
                                text[n + (size_t)i] = ' ';
                n += (size_t)got;
                text[n] = '\0';
                if (until && strstr(text, until))
                        return true;
        }
        return false;
}

/* Runs it, ends it, and answers its status, or -errno. */
static int run(const char *const *argv, char *text, size_t size, const char *until, int limit_ms,
        bool *ret_said)
{
        int pipes[2], status = 0;
        pid_t pid;
        bool said;

        if (pipe2(pipes, O_CLOEXEC) < 0)
                return -errno;
        pid = fork();
        if (pid == 0)
                become(argv, pipes[1]);
        close(pipes[1]);
        if (pid < 0) {
                close(pipes[0]);
                return -errno;
        }
        said = read_output(pipes[0], text, size, until, limit_ms);
        close(pipes[0]);
        kill(pid, SIGKILL); /* it is done, or took too long */
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
                ;
        if (ret_said)
                *ret_said = said;
        return status;
}

/* --- which QEMU --- */

static int find_in_path(const char *name, char ret[PATH_MAX])
{
        const char *path = getenv("PATH");

        if (strchr(name, '/')) {
                snprintf(ret, PATH_MAX, "%s", name);
                return access(name, X_OK) == 0 ? 0 : -errno;
        }
        while (path && *path) {
                size_t n = strcspn(path, ":");

                snprintf(ret, PATH_MAX, "%.*s/%s", (int)n, path, name);
                if (n > 0 && access(ret, X_OK) == 0)
                        return 0;
                path += n + (path[n] == ':');
        }
        return -ENOENT;
}

int qemu_find(struct qemu *ret, struct error *err)
{
        const char *said = getenv("VHDD_QEMU"), *name = said && said[0] ? said : DEFAULT_PROGRAM;
        _cleanup_free_ char *text = malloc(OUTPUT_MAX);
        const char *argv[] = {ret->program, "--version", NULL};
        const char *version;
        int micro = 0, r;

        *ret = (struct qemu){0};
        if (!text)
                return fail(err, ENOMEM, "no memory to run QEMU");
        r = find_in_path(name, ret->program);
        if (r < 0) {
                fail_os(err, ENOENT, "there is no QEMU at '%s'", name);
                error_set_hint(err, "apt install qemu-system-x86, or set VHDD_QEMU to its path");
                return -ENOENT;
        }
        r = run(argv, text, OUTPUT_MAX, NULL, LIMIT_MS, NULL);
        if (r < 0)
                return fail_os(err, -r, "cannot run '%s'", ret->program);
        version = strstr(text, "version ");
        if (!version || sscanf(version, "version %d.%d.%d", &ret->major, &ret->minor, &micro) < 2)
                return fail(
                        err, ENOTSUP, "'%s --version' does not say that it is QEMU", ret->program);
        snprintf(ret->version, sizeof(ret->version), "%d.%d.%d", ret->major, ret->minor, micro);
        if (ret->major < QEMU_LEAST_MAJOR ||
                (ret->major == QEMU_LEAST_MAJOR && ret->minor < QEMU_LEAST_MINOR))
                return fail(err, ENOTSUP, "'%s' is QEMU %s, which is too old: %d.%d is needed",
                        ret->program, ret->version, QEMU_LEAST_MAJOR, QEMU_LEAST_MINOR);
        return 0;
}

int qemu_look(struct qemu *qemu, struct error *err)
{
        _cleanup_free_ char *text = malloc(OUTPUT_MAX);
        const char *argv[] = {qemu->program, "-device", "help", NULL};
        int r;

        if (!text)
                return fail(err, ENOMEM, "no memory to run QEMU");
        r = run(argv, text, OUTPUT_MAX, NULL, LIMIT_MS, NULL);
        if (r < 0)
                return fail_os(err, -r, "cannot run '%s'", qemu->program);
        qemu->has_spice = strstr(text, "name \"qxl-vga\"") != NULL;
        qemu->has_hv_balloon = strstr(text, "name \"hv-balloon\"") != NULL;
        return 0;
}

/* --- does KVM run a guest --- */

static void read_boot_id(char *ret, size_t size)
{
        _cleanup_fd_ int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
        ssize_t n = fd >= 0 ? read(fd, ret, size - 1) : -1;

        ret[n > 0 ? n : 0] = '\0';
        ret[strcspn(ret, "\n")] = '\0';
}

/* What the result depends on. */
static json_t *circumstances(const struct qemu *qemu)
{
        struct stat st = {0};
        char boot[64];

        read_boot_id(boot, sizeof(boot));
        if (stat(qemu->program, &st) < 0)
                st.st_mtim.tv_sec = 0;
        return json_pack("{s:s, s:s, s:I, s:b}", "boot", boot, "program", qemu->program, "changed",
                (json_int_t)st.st_mtim.tv_sec, "device", access("/dev/kvm", R_OK | W_OK) == 0);
}

static bool recall(const char *path, const json_t *now, struct kvm *ret)
{
        json_auto_t *noted = json_load_file(path, 0, NULL);
        const char *why = json_string_value(json_object_get(noted, "why"));

        if (!why || !json_equal(json_object_get(noted, "of"), now))
                return false;
        ret->works = json_is_true(json_object_get(noted, "works"));
        snprintf(ret->why, sizeof(ret->why), "%s", why);
        return true;
}

static void note(const char *path, const json_t *now, const struct kvm *kvm)
{
        json_auto_t *noted =
                json_pack("{s:O, s:b, s:s}", "of", now, "works", kvm->works, "why", kvm->why);
        _cleanup_free_ char *new = NULL;

        if (!noted || asprintf(&new, "%s.new.%d", path, (int)getpid()) < 0) {
                new = NULL;
                return;
        }
        if (json_dump_file(noted, new, JSON_COMPACT) < 0 || rename(new, path) < 0)
                unlink(new);
}

static void last_line(char *text, char *ret, size_t size)
{
        size_t n = strlen(text);
        char *start;

        while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == '\r'))
                text[--n] = '\0';
        start = strrchr(text, '\n');
        snprintf(ret, size, "%.160s", start ? start + 1 : text);
}

static void try_firmware(const struct qemu *qemu, struct kvm *ret)
{
        const char *argv[] = {qemu->program, "-machine", "pc", "-accel", "kvm", "-cpu", "host",
                "-m", "32", "-nodefaults", "-no-user-config", "-display", "none", "-chardev",
                "stdio,id=d", "-device", "isa-debugcon,iobase=0x402,chardev=d", NULL};
        _cleanup_free_ char *text = malloc(OUTPUT_MAX);
        char line[256];
        int status;

        if (!text)
                return;
        status = run(argv, text, OUTPUT_MAX, FIRMWARE_DONE, KVM_LIMIT_MS, &ret->works);
        if (ret->works)
                return;
        last_line(text, line, sizeof(line));
        if (status >= 0 && (WIFEXITED(status) || WTERMSIG(status) != SIGKILL))
                snprintf(ret->why, sizeof(ret->why), "QEMU ended with it: %s", line);
        else
                snprintf(ret->why, sizeof(ret->why),
                        "a guest's firmware did not come through its start in %d s",
                        KVM_LIMIT_MS / 1000);
}

void kvm_try(const struct qemu *qemu, const char *cache, struct kvm *ret)
{
        json_auto_t *now = circumstances(qemu);
        _cleanup_free_ char *path = NULL;

        *ret = (struct kvm){0};
        if (access("/dev/kvm", R_OK | W_OK) < 0) {
                snprintf(ret->why, sizeof(ret->why), "/dev/kvm: %s", strerror(errno));
                return;
        }
        if (cache && asprintf(&path, "%s/kvm.json", cache) < 0)
                path = NULL;
        if (path && now && recall(path, now, ret))
                return;
        try_firmware(qemu, ret);
        if (path && now)
                note(path, now, ret);
}

void kvm_hyperv_look(struct kvm_hyperv *ret)
{
        _cleanup_fd_ int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

        *ret = (struct kvm_hyperv){0};
        if (fd < 0)
                return;
        ret->is_there = ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_HYPERV) > 0;
        ret->synic = ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_HYPERV_SYNIC2) > 0;
        ret->vp_index = ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_HYPERV_VP_INDEX) > 0;
}

int userfaultfd_try(struct error *err)
{
        struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP};
        _cleanup_fd_ int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

        if (fd < 0)
                return fail_os(err, errno, "userfaultfd is not to be had");
        if (ioctl(fd, UFFDIO_API, &api) < 0)
                return fail_os(err, errno, "userfaultfd cannot tell of writes");
        return 0;
}
