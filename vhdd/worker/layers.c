/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/worker/layers.h"

#include "base/uuid.h"

static const char *type_text(enum image_type type)
{
        switch (type) {
        case IMAGE_RAW: return "raw";
        case IMAGE_FIXED: return "fixed";
        case IMAGE_DYNAMIC: return "dynamic";
        case IMAGE_DIFFERENCING: return "differencing";
        }
        return "?";
}

const char *root_type_text(const struct chain *chain)
{
        return type_text(chain_layer(chain, 0)->type);
}

json_t *layers_to_json(const struct chain *chain)
{
        json_t *layers = json_array();

        for (unsigned i = chain_depth(chain); i-- > 0;) {
                const struct image *image = chain_layer(chain, i);
                char id[UUID_TEXT_SIZE];

                json_array_append_new(layers,
                        json_pack("{s:s, s:s, s:s, s:s, s:I}", "path", chain_layer_path(chain, i),
                                "uuid", uuid_format(image->id, id), "type", type_text(image->type),
                                "format", image->format->name, "size", (json_int_t)image->size));
        }
        return layers;
}
