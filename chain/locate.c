/* SPDX-License-Identifier: Apache-2.0 */
/* The order of the search, and why: what a child says relative to itself survives a move of the
 * folder, so it comes first; an absolute path is of the machine that wrote it; and a bare name beside
 * the child is what is left when somebody copied a few files out of Hyper-V's folders. The first file
 * whose id matches is the parent; one that is there with another id is reported, never used. */
#include "chain/locate.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/quote.h"
#include "base/uuid.h"
#include "chain/beneath.h"
#include "chain/hints.h"
#include "chain/paths.h"
#include "formats/intent.h"
#include "formats/vhd/hyperv.h"

#define SEARCH_MAX_FILES 4096u /* of a root, when looking for a file to name in a hint */

struct root {
        char given[PATH_TEXT_MAX]; /* absolute, as the user wrote it: children may say it so */
        char real[PATH_TEXT_MAX];  /* without symbolic links */
        int fd;                    /* O_PATH */
};

/* What was found in place of the parent; the greater says more about what is wrong. */
enum finding { FOUND_NOTHING, FOUND_OUTSIDE, FOUND_UNUSABLE, FOUND_ITSELF, FOUND_OTHER_ID };

struct search {
        struct file *child;
        struct file_stat child_stat;
        const uint8_t *wanted; /* the parent's id */
        bool quick;
        char directory[PATH_TEXT_MAX]; /* the child's */
        struct root *roots;            /* roots[0] is the child's directory */
        size_t n_roots;
        enum finding finding;
        struct error err;                   /* of the finding */
        char looked[ERROR_MESSAGE_MAX / 2]; /* "'/a/b.vhd', '/a/c.vhd'" */
        char outside[PATH_TEXT_MAX];        /* the first path that no root allows, or "" */
        bool outside_relative;
        bool looked_as_told; /* not only for bare names, which nobody asked us to look for here */
};

static void search_done(struct search *search)
{
        for (size_t i = 0; i < search->n_roots; i++)
                close(search->roots[i].fd);
        free(search->roots);
}

static void close_directory(DIR **directory)
{
        if (*directory)
                closedir(*directory);
}

/* --- where it may lie --- */

static int add_root(struct search *search, const char *path, struct error *err)
{
        struct root *root = &search->roots[search->n_roots];
        char cwd[PATH_TEXT_MAX];
        int r;

        r = path_absolute(path, root->real, sizeof(root->real));
        if (r == 0)
                r = beneath_open_root(root->real, &root->fd);
        if (r < 0) {
                fail_os(err, -r, "cannot look for parents in '%s'", path);
                error_set_file(err, path);
                return r;
        }
        search->n_roots++;
        if (!getcwd(cwd, sizeof(cwd)) ||
                path_resolve(cwd, path, root->given, sizeof(root->given)) < 0)
                snprintf(root->given, sizeof(root->given), "%s", root->real);
        return 0;
}

static int open_roots(struct search *search, const struct locate_roots *given, struct error *err)
{
        size_t n = given ? given->n_roots : 0;
        char beside[PATH_TEXT_MAX];
        int r;

        search->roots = calloc(n + 2, sizeof(*search->roots));
        if (!search->roots)
                return fail(err, ENOMEM, "no memory for %zu image roots", n);
        r = add_root(search, search->directory, err);
        /* A child opened by a link may also be told where its link stands. */
        path_directory(search->child->path, beside, sizeof(beside));
        if (r == 0)
                snprintf(search->roots[0].given, sizeof(search->roots[0].given), "%s",
                        beside[0] == '/' ? beside : search->directory);
        for (size_t i = 0; r == 0 && i < n; i++)
                r = add_root(search, given->roots[i], err);
        return r;
}

static const struct root *root_that_allows(
        const struct search *search, const char *path, const char **ret_rest)
{
        for (size_t i = 0; i < search->n_roots; i++)
                if (path_is_beneath(path, search->roots[i].real, ret_rest) ||
                        path_is_beneath(path, search->roots[i].given, ret_rest))
                        return &search->roots[i];
        return NULL;
}

/* --- trying --- */

/* Only the worst finding is told. */
static bool is_worse(struct search *search, enum finding finding)
{
        if (finding <= search->finding)
                return false;
        search->finding = finding;
        return true;
}

static void note_looked(struct search *search, const char *path)
{
        size_t used = strlen(search->looked);

        snprintf(search->looked + used, sizeof(search->looked) - used, "%s'%s'", used ? ", " : "",
                path);
}

static void note_outside(struct search *search, const struct locate_candidate *candidate)
{
        bool relative = path_kind_of(candidate->text) == PATH_RELATIVE;

        if (!search->outside[0] || (relative && !search->outside_relative)) {
                snprintf(search->outside, sizeof(search->outside), "%s", candidate->path);
                search->outside_relative = relative;
        }
}

static void note_unusable(struct search *search, const char *path, int code)
{
        struct error *err = &search->err;

        if (!is_worse(search, FOUND_UNUSABLE))
                return;
        if (code == ELOOP)
                fail(err, EPERM,
                        "parent '%s' of '%s' is reached through a symbolic link, and those are "
                        "not followed",
                        path, search->child->path);
        else if (code == EISDIR || code == ENXIO)
                fail(err, EPERM, "parent '%s' of '%s' is %s, not a regular file", path,
                        search->child->path,
                        code == EISDIR ? "a directory" : "a device, a FIFO or a socket");
        else if (code == ENOTUNIQ)
                fail(err, ENOENT,
                        "several files could be the parent '%s' of '%s': their names differ "
                        "only in upper and lower case",
                        path, search->child->path);
        else
                fail_os(err, code, "cannot open the parent '%s' of '%s'", path,
                        search->child->path);
        error_set_hyperv(err, HYPERV_PARENT_ACCESS);
}

static void note_itself(struct search *search)
{
        if (!is_worse(search, FOUND_ITSELF))
                return;
        fail(&search->err, ELOOP, "'%s' names itself as its parent", search->child->path);
        error_set_hyperv(&search->err, HYPERV_CHAIN_CYCLE);
}

static void note_other_id(struct search *search, const char *path, const uint8_t id[16])
{
        char has[UUID_TEXT_SIZE], wants[UUID_TEXT_SIZE];

        if (!is_worse(search, FOUND_OTHER_ID))
                return;
        fail(&search->err, ESTALE,
                "parent '%s' of '%s' has the id %s, and the child was made over %s: it is another "
                "disk, or was made anew",
                path, search->child->path, uuid_format(id, has),
                uuid_format(search->wanted, wants));
        error_set_hyperv(&search->err, HYPERV_PARENT_ID);
}

static bool same_file(const struct file_stat *a, const struct file_stat *b)
{
        return a->device == b->device && a->inode == b->inode;
}

int locate_read_metadata(
        struct file *file, unsigned flags, struct vhd_metadata *ret, struct error *err)
{
        struct file *view = NULL;
        int r = intent_recover(file, false, NULL, &view, err);

        if (r < 0)
                return r;
        r = vhd_metadata_read(view ? view : file, flags, ret, err);
        if (view)
                intent_view_dismiss(view);
        return r;
}

/* Is @file the one that the child was made over? Wrong checksums are passed: who opens the image
 * says more about them than "not found" would. */
static bool is_wanted(struct search *search, struct file *file)
{
        struct vhd_metadata metadata;
        struct file_stat st;
        struct error err = ERROR_INIT;
        int r;

        r = file_stat_get(file, &st);
        if (r < 0) {
                note_unusable(search, file->path, -r);
                return false;
        }
        if (same_file(&st, &search->child_stat)) {
                note_itself(search);
                return false;
        }
        r = locate_read_metadata(file, VHD_READ_FORCE, &metadata, &err);
        if (r < 0) {
                if (is_worse(search, FOUND_UNUSABLE)) {
                        search->err = err;
                        fail_prefix(&search->err, r, "opening parent '%s' of '%s'", file->path,
                                search->child->path);
                        error_set_hyperv(&search->err, HYPERV_PARENT_NOT_FOUND);
                }
                return false;
        }
        if (!uuid_equal(metadata.footer.unique_id, search->wanted)) {
                note_other_id(search, file->path, metadata.footer.unique_id);
                return false;
        }
        return true;
}

static int open_allowed(const struct root *root, const char *rest, struct file **ret)
{
        char real[PATH_TEXT_MAX], path[2 * PATH_TEXT_MAX];
        _cleanup_fd_ int fd = -1;
        int r;

        r = beneath_open(root->fd, rest, &fd, real, sizeof(real));
        if (r < 0)
                return r;
        snprintf(path, sizeof(path), "%s/%s", strcmp(root->real, "/") == 0 ? "" : root->real, real);
        r = file_from_fd(fd, path, FILE_READ, ret, NULL);
        if (r == 0)
                fd = -1;
        return r;
}

/* 1 and the file if it is the parent; 0 and a note if not. */
static int try_allowed(struct search *search, const struct root *root, const char *rest,
        const char *path, struct file **ret)
{
        _cleanup_(file_closep) struct file *file = NULL;
        int r;

        if (hints_on_host(search->child))
                r = open_allowed(root, rest, &file);
        else
                r = file_open(search->child->fs, path, FILE_READ, &file, NULL);
        if (r == -ENOENT || r == -ENOTDIR) {
                note_looked(search, path);
                return 0;
        }
        if (r < 0) {
                note_unusable(search, path, -r);
                return 0;
        }
        if (!is_wanted(search, file))
                return 0;
        *ret = TAKE_PTR(file);
        return 1;
}

static int try_candidate(
        struct search *search, const struct locate_candidate *candidate, struct file **ret)
{
        const struct root *root = NULL;
        const char *rest = NULL;

        if (hints_on_host(search->child)) {
                root = root_that_allows(search, candidate->path, &rest);
                if (!root) {
                        note_outside(search, candidate);
                        return 0;
                }
        }
        if (strcmp(candidate->source, HINT_BARE) != 0)
                search->looked_as_told = true;
        return try_allowed(search, root, rest, candidate->path, ret);
}

/* Does an earlier candidate end in the same name? Then it has been looked for everywhere. */
static bool is_repeated_name(const struct locate_candidate *candidates, size_t n)
{
        const char *name = path_bare_name(candidates[n].text);

        for (size_t i = 0; i < n; i++) {
                const char *other = path_bare_name(candidates[i].text);

                if (other && strcmp(other, name) == 0)
                        return true;
        }
        return false;
}

static bool is_repeated_root(const struct search *search, size_t n)
{
        for (size_t i = 0; i < n; i++)
                if (strcmp(search->roots[i].real, search->roots[n].real) == 0)
                        return true;
        return false;
}

/* The bare names in each root; beside the child they have been tried. */
static int try_roots(struct search *search, const struct locate_candidate *candidates, size_t n,
        struct file **ret)
{
        for (size_t i = 0; i < n; i++) {
                const char *name = path_bare_name(candidates[i].text);

                if (!name || is_repeated_name(candidates, i))
                        continue;
                for (size_t k = 1; k < search->n_roots; k++) {
                        char path[PATH_TEXT_MAX];

                        if (is_repeated_root(search, k) ||
                                path_resolve(search->roots[k].real, name, path, sizeof(path)) < 0 ||
                                hints_know(candidates, n, path))
                                continue;
                        if (try_allowed(search, &search->roots[k], name, path, ret))
                                return 1;
                }
        }
        return 0;
}

/* --- telling --- */

static bool has_wanted_id(struct search *search, const struct root *root, const char *name)
{
        _cleanup_(file_closep) struct file *file = NULL;
        struct vhd_metadata metadata;

        return open_allowed(root, name, &file) == 0 &&
                locate_read_metadata(file, 0, &metadata, NULL) == 0 &&
                uuid_equal(metadata.footer.unique_id, search->wanted);
}

/* A file in a root that has the id, under whatever name: for the hint, not to be used unasked (it
 * may be a copy that went its own way). */
static bool find_by_id(struct search *search, char *ret, size_t ret_size)
{
        for (size_t i = 0; i < search->n_roots; i++) {
                _cleanup_(close_directory) DIR *directory = opendir(search->roots[i].real);
                struct dirent *entry;

                for (unsigned n = 0; directory && n < SEARCH_MAX_FILES; n++) {
                        entry = readdir(directory);
                        if (!entry)
                                break;
                        if (entry->d_type != DT_REG && entry->d_type != DT_UNKNOWN)
                                continue;
                        if (!has_wanted_id(search, &search->roots[i], entry->d_name))
                                continue;
                        return path_resolve(search->roots[i].real, entry->d_name, ret, ret_size) ==
                                0;
                }
        }
        return false;
}

/* The root that makes @outside legal: wide enough for the rest of a chain laid out as Hyper-V does
 * it (folders beside each other), never the whole of a top folder. */
static void root_for(const struct search *search, char *ret, size_t ret_size)
{
        char own[PATH_TEXT_MAX];

        path_directory(search->outside, own, sizeof(own));
        path_common_directory(own, search->directory, ret, ret_size);
        if (!strchr(ret + 1, '/'))
                snprintf(ret, ret_size, "%s", own);
}

static void hint_relink(struct search *search, struct error *err)
{
        char child[QUOTE_TEXT_MAX], parent[PATH_TEXT_MAX], quoted[QUOTE_TEXT_MAX];

        shell_quote(search->child->path, child, sizeof(child));
        if (!search->quick && hints_on_host(search->child) &&
                find_by_id(search, parent, sizeof(parent)))
                error_set_hint(err, "vhdctl relink %s --parent %s", child,
                        shell_quote(parent, quoted, sizeof(quoted)));
        else
                error_set_hint(err, "vhdctl relink %s --parent FILE", child);
}

static int fail_outside(struct search *search, struct error *err)
{
        char root[PATH_TEXT_MAX], quoted[QUOTE_TEXT_MAX];

        fail(err, EPERM,
                "parent '%s' of '%s' lies outside the directories where parents may be looked for",
                search->outside, search->child->path);
        error_set_hyperv(err, HYPERV_PARENT_ACCESS);
        root_for(search, root, sizeof(root));
        error_set_hint(err, "--image-root %s", shell_quote(root, quoted, sizeof(quoted)));
        return -EPERM;
}

static int fail_not_found(
        struct search *search, const struct locate_candidate *first, struct error *err)
{
        char id[UUID_TEXT_SIZE];

        uuid_format(search->wanted, id);
        if (!first)
                fail(err, ENOENT, "'%s' has a parent (id %s) and does not say where",
                        search->child->path, id);
        else if (!search->looked[0])
                fail(err, ENOENT,
                        "'%s' says that its parent (id %s) is '%s', which means nothing here",
                        search->child->path, id, first->text);
        else
                fail(err, ENOENT, "no parent for '%s' (id %s): looked for %s", search->child->path,
                        id, search->looked);
        error_set_hyperv(err, HYPERV_PARENT_NOT_FOUND);
        hint_relink(search, err);
        return -ENOENT;
}

static int fail_search(
        struct search *search, const struct locate_candidate *first, struct error *err)
{
        int r;

        if (search->finding != FOUND_NOTHING) {
                r = -search->err.code;
                if (err)
                        *err = search->err;
                hint_relink(search, err);
        } else if (search->outside[0] && (search->outside_relative || !search->looked_as_told)) {
                r = fail_outside(search, err);
        } else {
                r = fail_not_found(search, first, err);
        }
        if (err) /* about the child, whatever file was looked at last */
                err->file[0] = '\0';
        error_set_file(err, search->child->path);
        return r;
}

/* --- named by hand --- */

/* A FIFO must not hang us, and what is no file is not opened. */
int locate_open_named(struct fs *fs, const char *path, struct file **ret, struct error *err)
{
        _cleanup_fd_ int fd = -1;
        struct stat st;
        int flags, r;

        if (fs != host_fs())
                return file_open(fs, path, FILE_READ, ret, err);
        if (stat(path, &st) < 0)
                return fail_os(err, errno, "cannot open the parent '%s'", path);
        if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
                return fail(
                        err, EINVAL, "the parent '%s' is neither a file nor a block device", path);
        fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        if (fd < 0)
                return fail_os(err, errno, "cannot open the parent '%s'", path);
        flags = fcntl(fd, F_GETFL);
        if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
                return fail_os(err, errno, "cannot set up the parent '%s'", path);
        r = file_from_fd(fd, path, FILE_READ, ret, err);
        if (r == 0)
                fd = -1;
        return r;
}

/* Only a child that asks for no id (tapdisk's way to say "raw") may stand on a raw file. */
static int check_raw_parent(const struct search *search, struct file *file, struct error *err)
{
        struct file_stat st;
        char wants[UUID_TEXT_SIZE];
        int r;

        if (!uuid_is_zero(search->wanted)) {
                fail(err, ESTALE, "'%s' is no VHD, and '%s' was made over the VHD with id %s",
                        file->path, search->child->path, uuid_format(search->wanted, wants));
                error_set_hyperv(err, HYPERV_PARENT_ID);
                return -ESTALE;
        }
        r = file_stat_get(file, &st);
        if (r < 0)
                return fail_os(err, -r, "cannot look at the parent '%s'", file->path);
        if (!st.is_regular)
                return fail(err, EPERM,
                        "'%s' is a device with no VHD on it, and such a disk is nobody's parent",
                        file->path);
        return 0;
}

static int check_named(struct search *search, struct file *file, struct error *err)
{
        struct vhd_metadata metadata;
        struct file_stat st;
        int r;

        r = file_stat_get(file, &st);
        if (r < 0)
                return fail_os(err, -r, "cannot look at the parent '%s'", file->path);
        if (same_file(&st, &search->child_stat)) {
                note_itself(search);
        } else {
                r = locate_read_metadata(file, VHD_READ_FORCE, &metadata, err);
                if (r == -ENOMEDIUM)
                        return check_raw_parent(search, file, err);
                if (r < 0)
                        return fail_prefix(err, r, "opening parent '%s' of '%s'", file->path,
                                search->child->path);
                if (uuid_equal(metadata.footer.unique_id, search->wanted))
                        return 0;
                note_other_id(search, file->path, metadata.footer.unique_id);
        }
        if (err)
                *err = search->err;
        return -search->err.code;
}

static int locate_named(
        struct search *search, const char *named, struct file **ret, struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        int r;

        r = locate_open_named(search->child->fs, named, &file, err);
        if (r == 0)
                r = check_named(search, file, err);
        if (r < 0) {
                error_set_file(err, named);
                return r;
        }
        *ret = TAKE_PTR(file);
        return 0;
}

static int locate_by_hints(struct search *search, const struct vhd_header *header,
        const struct locate_roots *roots, struct file **ret, struct error *err)
{
        _cleanup_free_ struct locate_candidate *candidates =
                calloc(LOCATE_MAX_CANDIDATES, sizeof(struct locate_candidate));
        size_t n;
        int r;

        if (!candidates)
                return fail(err, ENOMEM, "no memory to look for a parent");
        if (hints_on_host(search->child)) {
                r = open_roots(search, roots, err);
                if (r < 0)
                        return r;
        }
        n = locate_candidates(search->child, header, candidates);
        for (size_t i = 0; i < n; i++) {
                if (!candidates[i].path[0] || hints_know(candidates, i, candidates[i].path))
                        continue;
                if (try_candidate(search, &candidates[i], ret))
                        return 0;
        }
        if (try_roots(search, candidates, n, ret))
                return 0;
        return fail_search(search, n ? candidates : NULL, err);
}

int locate_parent(struct file *child, const struct vhd_metadata *metadata,
        const struct locate_roots *roots, const char *named, struct file **ret, struct error *err)
{
        _cleanup_(search_done) struct search search = {
                .child = child,
                .wanted = metadata->header.parent_id,
                .quick = roots && roots->quick,
        };
        char quoted[QUOTE_TEXT_MAX];
        int r;

        r = file_stat_get(child, &search.child_stat);
        if (r == 0)
                r = hints_directory(child, search.directory, sizeof(search.directory));
        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", child->path);
        if (named)
                return locate_named(&search, named, ret, err);
        if (uuid_is_zero(search.wanted)) {
                fail(err, ENOENT,
                        "'%s' stands on a raw disk (it asks for no id), and a raw file is a "
                        "parent only when it is named",
                        child->path);
                error_set_file(err, child->path);
                error_set_hyperv(err, HYPERV_PARENT_NOT_FOUND);
                error_set_hint(err, "--parent FILE, the raw disk under %s",
                        shell_quote(child->path, quoted, sizeof(quoted)));
                return -ENOENT;
        }
        return locate_by_hints(&search, &metadata->header, roots, ret, err);
}
