/* SPDX-License-Identifier: Apache-2.0 */
#include "chain/reparent.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chain/hints.h"
#include "chain/paths.h"

struct places {
        char parent[PATH_TEXT_MAX], child[PATH_TEXT_MAX], directory[PATH_TEXT_MAX];
        char relative[PATH_TEXT_MAX];
};

static int real_path(const struct file *file, char *ret, size_t size)
{
        if (hints_on_host(file))
                return path_absolute(file->path, ret, size);
        /* Elsewhere (a worker's files, a simulated disk) names are what they are. */
        snprintf(ret, size, "%s%s", file->path[0] == '/' ? "" : "/", file->path);
        return 0;
}

static int find_places(const struct image *child, const struct image *parent, struct places *ret)
{
        int r = real_path(parent->file, ret->parent, sizeof(ret->parent));

        if (r == 0)
                r = real_path(child->file, ret->child, sizeof(ret->child));
        if (r < 0)
                return r;
        path_directory(ret->child, ret->directory, sizeof(ret->directory));
        return path_relative(ret->directory, ret->parent, ret->relative, sizeof(ret->relative));
}

static int plan(struct image *child, const struct image *parent, const uint8_t parent_id[16],
        const struct places *places, struct reparent *ret, struct error *err)
{
        _cleanup_free_ struct vhd_metadata *metadata = malloc(sizeof(*metadata));
        const char *name = path_bare_name(places->parent);
        struct parent_names names = {
                .timestamp = vhd_time_from_unix(fs_now(child->file->fs)),
                .name = name ? name : "",
                .relative = places->relative,
                .absolute = places->parent,
        };
        int r;

        if (!metadata)
                return fail(
                        err, ENOMEM, "no memory to give '%s' another parent", child->file->path);
        memcpy(names.id, parent_id, sizeof(names.id));
        r = vhd_head_get(child, metadata, err);
        return r == 0 ? parent_texts_plan(metadata, NULL, &names, &ret->texts, err) : r;
}

int reparent_plan(struct image *child, const struct image *parent, const uint8_t parent_id[16],
        struct reparent *ret, struct error *err)
{
        _cleanup_free_ struct places *places = malloc(sizeof(*places));
        int r;

        *ret = (struct reparent){0};
        if (!places)
                return fail(
                        err, ENOMEM, "no memory to give '%s' another parent", child->file->path);
        r = find_places(child, parent, places);
        if (r < 0)
                return fail_os(err, -r, "cannot write down in '%s' where '%s' lies",
                        child->file->path, parent->file->path);
        r = plan(child, parent, parent_id, places, ret, err);
        if (r < 0) {
                error_set_file(err, child->file->path);
                return r;
        }
        for (unsigned i = 0; i < ret->texts.n_texts; i++)
                ret->list[i] = (struct vhd_head_text){ret->texts.texts[i].offset,
                        ret->texts.texts[i].size, ret->texts.texts[i].bytes};
        ret->head.header = &ret->texts.header;
        ret->head.texts = ret->list;
        ret->head.n_texts = ret->texts.n_texts;
        return 0;
}

void reparent_done(struct reparent *reparent)
{
        parent_texts_done(&reparent->texts);
}
