/* SPDX-License-Identifier: Apache-2.0 */
#include "chain/alone.h"

#include "base/mutant.h"

static int refuse(const char *path, struct error *err)
{
        fail(err, EBUSY,
                "a server of '%s' died, and blocks that it gave up may be in an image below alone, "
                "which has to become durable first",
                path);
        error_set_file(err, path);
        error_set_hint(err,
                "open it once for writing together with its parents (vhdctl serve; with "
                "--image-root DIR or --parent FILE if they lie elsewhere), then try again");
        return -EBUSY;
}

/* Records of a root rely on nothing. */
static bool relies_on_others(const struct image *image)
{
        return image->type == IMAGE_DIFFERENCING && image->replayed_frees &&
                !MUTANT("settled-alone");
}

/* What cannot be looked at has another opener to say why. */
static bool needs_others(const char *path, const struct chain_options *options)
{
        struct fs *fs = options->fs ? options->fs : host_fs();
        _cleanup_(image_abandonp) struct image *image = NULL;
        struct file *file;

        if (file_open(fs, path, FILE_READ, &file, NULL) < 0)
                return false;
        if (image_open(file, options->format, 0, &image, NULL) < 0) {
                file_close(file);
                return false;
        }
        return relies_on_others(image);
}

static int fail_read_only(const char *path, const struct chain *chain, struct error *err)
{
        const char *warning = chain_layer(chain, chain_depth(chain) - 1)->warning;

        error_set_file(err, path);
        return fail(err, EROFS, "what a dead server of '%s' left cannot come into it: %s", path,
                warning[0] ? warning : "a sync of an image below it failed");
}

int alone_settle(const char *path, const struct chain_options *options, struct error *err)
{
        struct chain_options writing = *options;
        struct chain *chain = NULL;
        int r;

        if (!needs_others(path, options))
                return 0;
        writing.writable = true;
        writing.scratch = writing.force = writing.leaf_only = writing.loose_lock = false;
        r = chain_open(path, &writing, &chain, err);
        if (r < 0)
                return fail_prefix(err, r,
                        "a server of '%s' died, and what it left has to come into all images of its "
                        "chain first",
                        path);
        if (chain_is_writable(chain))
                return chain_close(chain, err);
        r = fail_read_only(path, chain, err);
        chain_abandon(chain);
        return r;
}

int alone_open(struct file *file, const char *format, unsigned flags, struct image **ret,
        struct error *err)
{
        struct image *image = NULL;
        int r = image_open(file, format, IMAGE_WRITABLE | flags, &image, err);

        if (r < 0) {
                file_close(file);
                return r;
        }
        if (image->writable && relies_on_others(image)) {
                r = refuse(file->path, err);
                image_abandon(image); /* the file goes with it */
                return r;
        }
        *ret = image;
        return 0;
}
