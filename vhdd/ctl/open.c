/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/open.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/quote.h"
#include "chain/paths.h"
#include "chain/seal.h"
#include "chain/tree.h"

const char *ctl_base_name(const char *path)
{
        const char *slash = strrchr(path, '/');

        return slash ? slash + 1 : path;
}

void ctl_chain_options(const struct ctl *ctl, struct chain_options *ret)
{
        *ret = (struct chain_options){
                .force = ctl->force,
                .format = ctl->format,
                .image_roots = ctl->roots,
                .n_image_roots = ctl->n_roots,
                .parents = ctl->parents,
                .n_parents = ctl->n_parents,
                .warn = ctl_warn_chain,
                .opaque = (void *)ctl,
        };
}

int ctl_chain_open(const struct ctl *ctl, const char *path, struct chain **ret, struct error *err)
{
        struct chain_options options;

        ctl_chain_options(ctl, &options);
        return chain_open(path, &options, ret, err);
}

void ctl_chain_close(struct chain *chain)
{
        chain_close(chain, NULL);
}

int ctl_refuse_parent(const struct ctl *ctl, const char *path, struct error *err)
{
        const struct locate_roots roots = {
                .roots = ctl->image_roots, .n_roots = ctl->n_image_roots};
        int r = tree_refuse_if_parent(path, &roots, err);

        /* What cannot be read cannot have been anybody's parent, or is refused by who opens it. */
        if (r == 0 || r == -EBUSY)
                return r;
        if (r == -EACCES || r == -ENOMEM || r == -EMFILE)
                ctl_warn(ctl, "whether images stand on '%s' is not known: %s", path, err->message);
        error_clear(err);
        return 0;
}

void ctl_warn_of_seal(const struct ctl *ctl, const char *path)
{
        char seal[PATH_TEXT_MAX + sizeof(SEAL_ENDING)], quoted[QUOTE_TEXT_MAX];

        snprintf(seal, sizeof(seal), "%s" SEAL_ENDING, path);
        if (access(seal, F_OK) == 0)
                ctl_warn(ctl, "the seal of '%s' does not fit it any more; vhdctl seal --force %s",
                        path, shell_quote(path, quoted, sizeof(quoted)));
}
