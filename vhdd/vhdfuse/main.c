/* SPDX-License-Identifier: Apache-2.0 */
/* main.c - vhdfuse: opens an image, mounts what it holds, and serves that until it is unmounted.
 *
 *      started -> (fork) ------------------> waits, and says how it went
 *                   \-> open -> tree -> mount -> ready -> serve -> close
 *
 * Whatever is opened is opened behind the fork: locks and threads are the process's that serves. */
#include <limits.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <syslog.h>
#include <unistd.h>

#include "base/size.h"
#include "chain/tree.h"
#include "fuse/background.h"
#include "fuse/image_tree.h"
#include "fuse/mountpoint.h"
#include "fuse/session.h"
#include "vhdd/describe/info.h"
#include "vhdd/describe/partitions.h"
#include "vhdd/describe/values.h"
#include "vhdd/vhdfuse/live.h"
#include "vhdd/vhdfuse/options.h"

#define EXIT_FAILED 3

struct service {
        const struct options *options;
        char *file;         /* its path from the root: the working directory is left; or "vhdd" */
        bool in_background; /* nobody reads stderr any more */
        struct background background;
        struct chain *chain;
        struct vhdfuse_tree *tree;
        struct image_tree *image;
        struct live *live; /* instead of chain and image */
        struct vhdfuse_session *session;
};

static void warn_sentence(void *opaque, const char *sentence)
{
        const struct service *service = opaque;
        _cleanup_free_ char *safe = NULL;

        if (service->in_background) {
                syslog(LOG_WARNING, "%s", sentence);
                return;
        }
        if (service->options->quiet)
                return;
        safe = text_safe(sentence);
        fprintf(stderr, "%s: warning: %s\n", service->options->program, safe);
}

static void warn_in_use(void *opaque, unsigned seconds)
{
        struct service *service = opaque;
        char sentence[ERROR_MESSAGE_MAX];

        snprintf(sentence, sizeof(sentence),
                "'%s' is still in use at '%s': ending in %u seconds, what is open then is cut off",
                service->file, service->options->directory, seconds);
        warn_sentence(service, sentence);
}

/* --- opening */

static char *absolute_path(const char *path)
{
        char directory[PATH_MAX], *absolute;

        if (path[0] == '/')
                return must(strdup(path));
        if (!getcwd(directory, sizeof(directory)) ||
                asprintf(&absolute, "%s/%s", strcmp(directory, "/") == 0 ? "" : directory, path) <
                        0)
                absolute = strdup(path);
        return must(absolute);
}

static void make_absolute(const char **paths, size_t n)
{
        for (size_t i = 0; i < n; i++)
                paths[i] = absolute_path(paths[i]);
}

/* An image that others stand on would change under them. */
static int refuse_parent(const struct service *service, struct error *err)
{
        const struct locate_roots roots = {
                .roots = service->options->image_roots, .n_roots = service->options->n_image_roots};
        int r = tree_refuse_if_parent(service->file, &roots, err);

        if (r == -EBUSY) {
                err->hint[0] = '\0'; /* we know better than who looked */
                error_set_hint(err, "without --writable it is mounted as it is");
                return r;
        }
        /* What cannot be read cannot have been anybody's parent, or is refused by who opens it. */
        error_clear(err);
        return 0;
}

static void fill_chain_options(struct service *service, struct chain_options *ret)
{
        const struct options *o = service->options;

        *ret = (struct chain_options){
                .writable = o->writable,
                .scratch = o->scratch,
                .force = o->force,
                .format = o->format,
                .image_roots = o->image_roots,
                .n_image_roots = o->n_image_roots,
                .parents = o->parents,
                .n_parents = o->n_parents,
                .warn = warn_sentence,
                .opaque = service,
        };
}

static int open_chain(struct service *service, struct error *err)
{
        struct chain_options chain_options;
        int r = service->options->writable ? refuse_parent(service, err) : 0;

        if (r < 0)
                return r;
        fill_chain_options(service, &chain_options);
        r = chain_open(service->file, &chain_options, &service->chain, err);
        if (r == -EBUSY) {
                err->hint[0] = '\0'; /* the options that it speaks of are not ours */
                error_set_hint(err, "end the other program first");
        }
        if (service->options->writable && (r == -EACCES || r == -EROFS || r == -EPERM))
                error_set_hint(err, "without --writable, if it need not be written to");
        return r;
}

/* --- texts of the mount */

static char *text_of(json_t *value)
{
        _cleanup_free_ char *text = json_dumps(value, JSON_INDENT(2));
        char *line;

        json_decref(value);
        if (!text || asprintf(&line, "%s\n", text) < 0)
                return NULL;
        return line;
}

/* As `vhdctl info --chain --json` would say it, with the file called as the user called it. */
static char *make_info(void *opaque)
{
        struct service *service = opaque;
        struct chain_options chain_options;
        const struct info_request request = {.chain_options = &chain_options, .chain = true};
        struct error err = ERROR_INIT;
        json_t *info = NULL;

        fill_chain_options(service, &chain_options);
        chain_options.warn = NULL; /* all was said when it was opened */
        if (info_to_json(service->options->file, &request, &info, &err) < 0)
                info = error_to_json(&err);
        return text_of(info);
}

static char *make_partitions_info(void *opaque, const struct partition_table *table)
{
        return text_of(partitions_to_json(table));
}

/* --- mounting */

static void fill_statfs(void *opaque, struct statvfs *ret)
{
        image_tree_statfs(((struct service *)opaque)->image, ret);
}

/* Only who mounts it reads it, unless allow_other lets others: then root's is still root's. */
static int make_live_tree(struct service *service, struct error *err)
{
        const struct vhdfuse_owner owner = {.uid = geteuid(), .gid = getegid(), .mode = 0400};
        int r = vhdfuse_tree_new(&owner, &service->tree);

        if (r < 0)
                return fail_os(err, -r, "cannot make the files of the mount");
        return live_new(service->tree, service->options->control, &service->live, err);
}

static int make_tree(struct service *service, struct error *err)
{
        const struct image_tree_options image_options = {
                .chain = service->chain,
                .info = make_info,
                .partitions_info = make_partitions_info,
                .warn = warn_sentence,
                .opaque = service,
        };
        struct vhdfuse_owner owner;
        int r;

        image_tree_owner(service->chain, &owner);
        r = vhdfuse_tree_new(&owner, &service->tree);
        if (r < 0)
                return fail_os(err, -r, "cannot make the files of the mount");
        return image_tree_new(service->tree, &image_options, &service->image, err);
}

static bool is_writable(const struct service *service)
{
        return service->chain && chain_is_writable(service->chain);
}

static int mount_tree(struct service *service, struct error *err)
{
        const struct vhdfuse_session_options session_options = {
                .tree = service->tree,
                .mountpoint = service->options->directory,
                .source = service->file,
                .options = service->options->mount_options,
                .read_only = !is_writable(service),
                .statfs = service->image ? fill_statfs : NULL,
                .in_use = warn_in_use,
                .opaque = service,
        };

        return vhdfuse_session_mount(&session_options, &service->session, err);
}

/* --- saying so */

static void announce_json(const struct service *service)
{
        json_t *answer = must(json_object());
        bool writable = chain_is_writable(service->chain);

        json_object_set_new(answer, "filename", json_text(service->options->file));
        json_object_set_new(answer, "mountpoint", json_text(service->options->directory));
        json_object_set_new(answer, "virtual-size", json_size(chain_size(service->chain)));
        json_object_set_new(answer, "depth", json_size(chain_depth(service->chain)));
        json_object_set_new(answer, "read-only", json_boolean(!writable));
        json_object_set_new(
                answer, "pid", service->session ? json_size((uint64_t)getpid()) : json_null());
        json_print(answer);
}

static void announce_live(const struct service *service)
{
        _cleanup_free_ char *directory = text_safe(service->options->directory);
        json_t *answer;

        if (service->options->json) {
                answer = must(json_object());
                json_object_set_new(answer, "mountpoint", json_text(service->options->directory));
                json_object_set_new(answer, "read-only", json_true());
                json_object_set_new(answer, "pid",
                        service->session ? json_size((uint64_t)getpid()) : json_null());
                json_print(answer);
        } else if (!service->options->quiet) {
                fprintf(stderr, "%s: the daemon's vms %s mounted at '%s', read-only\n",
                        service->options->program, service->session ? "are" : "can be", directory);
        }
        fflush(stdout);
}

static void announce(const struct service *service)
{
        _cleanup_free_ char *file = text_safe(service->options->file);
        _cleanup_free_ char *directory = text_safe(service->options->directory);
        unsigned depth = chain_depth(service->chain);
        char size[SIZE_TEXT_MAX];

        if (service->options->json)
                announce_json(service);
        else if (!service->options->quiet)
                fprintf(stderr, "%s: '%s' %s mounted at '%s', %s, %u %s%s\n",
                        service->options->program, file, service->session ? "is" : "can be",
                        directory, size_to_text(chain_size(service->chain), size), depth,
                        depth == 1 ? "layer" : "layers",
                        chain_is_writable(service->chain) ? "" : ", read-only");
        fflush(stdout);
}

static void report_failure(const struct options *options, const struct error *err)
{
        error_print(options->program, err);
        if (options->json)
                json_print(error_to_json(err));
}

/* --- the way of it */

static int look_at_mountpoint(struct service *service, bool *ret_cleared, struct error *err)
{
        const char *directory = service->options->directory;
        enum mountpoint_kind kind;

        return service->options->dry_run ? mountpoint_look(directory, &kind, err)
                                         : mountpoint_prepare(directory, ret_cleared, err);
}

static int prepare(struct service *service, struct error *err)
{
        bool cleared = false;
        int r = look_at_mountpoint(service, &cleared, err);

        if (r == 0 && cleared)
                warn_sentence(
                        service, "a mount that was left over here is taken away: its vhdfuse died");
        if (r == 0 && !service->options->live)
                r = open_chain(service, err);
        if (r == 0)
                r = service->options->live ? make_live_tree(service, err) : make_tree(service, err);
        if (r == 0 && !service->options->dry_run)
                r = mount_tree(service, err);
        return r;
}

/* The first thing that fails is what is told. */
static int finish(struct service *service, int r, struct error *err)
{
        struct error later = ERROR_INIT;
        int r_close;

        if (service->live)
                live_stop(service->live);
        service->session = vhdfuse_session_free(service->session);
        service->tree = vhdfuse_tree_free(service->tree);
        service->image = image_tree_free(service->image);
        service->live = live_free(service->live);
        if (service->chain) {
                r_close = chain_close(service->chain, r == 0 ? err : &later);
                if (r == 0)
                        r = r_close;
        }
        return r;
}

/* The directory that it was started in is not to be held busy, unless a path is relative to it that is
 * needed again (make_info). */
static void leave_directory(const struct service *service)
{
        bool needed = is_writable(service) && service->options->file[0] != '/';

        if (service->in_background && !needed && chdir("/") < 0)
                syslog(LOG_WARNING, "cannot leave the working directory: %m");
}

/* Whoever started us learns that all is well. */
static int go_on_alone(struct service *service, struct error *err)
{
        int r = background_report(&service->background, 0, NULL);

        return r < 0
                ? fail(err, -r, "'%s' is not mounted: nobody waits for it any more", service->file)
                : 0;
}

/* To the system's log, and for `vhdctl umount', which waits for our end. */
static void tell_bad_end(const struct service *service, const struct error *err)
{
        FILE *report = service->options->report ? fopen(service->options->report, "we") : NULL;

        syslog(LOG_ERR, "%s", err->message);
        if (report) {
                fprintf(report, "%s\n", err->message);
                fclose(report);
        }
}

static int serve(struct service *service, struct error *err)
{
        int r = prepare(service, err);

        if (r == 0) {
                if (service->live)
                        announce_live(service);
                else
                        announce(service);
                if (service->session) {
                        service->in_background = service->background.fd >= 0;
                        leave_directory(service);
                        r = service->live ? live_start(service->live, err) : 0;
                        if (r == 0)
                                r = go_on_alone(service, err);
                        if (r == 0)
                                r = vhdfuse_session_run(service->session, err);
                }
        }
        r = finish(service, r, err);
        if (r == 0 || service->background.fd >= 0)
                background_report(&service->background, r, err);
        else if (service->in_background)
                tell_bad_end(service, err);
        else
                report_failure(service->options, err);
        return r;
}

int main(int argc, char **argv)
{
        /* What the command line said lives as long as the process. */
        static struct options options;
        static struct service service = {.options = &options, .background = {.fd = -1}};
        struct error err = ERROR_INIT;
        int r = 0;

        setlocale(LC_CTYPE, "");
        unsetenv("POSIXLY_CORRECT"); /* options may stand behind operands */
        signal(SIGPIPE, SIG_IGN);
        signal(SIGXFSZ, SIG_IGN); /* a limit on the size of files is EFBIG */
        options_read(argc, argv, &options);
        service.file = options.live ? must(strdup("vhdd")) : absolute_path(options.file);
        make_absolute(options.image_roots, options.n_image_roots);
        make_absolute(options.parents, options.n_parents);
        openlog("vhdfuse", LOG_PID, LOG_DAEMON);

        if (!options.foreground && !options.dry_run &&
                !background_begin(&service.background, &r, &err)) {
                if (r < 0)
                        report_failure(&options, &err);
                return r < 0 ? EXIT_FAILED : 0;
        }
        vhdfuse_session_block_signals();
        return serve(&service, &err) < 0 ? EXIT_FAILED : 0;
}
