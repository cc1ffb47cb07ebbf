/* The VAE of Stable Diffusion in one file of C99: encoder and decoder, in float32, for images and latents of any size.

   It answers the requests of `vaespec conformance` by the protocol in docs/programs.md:

       cc -O2 -o vae vae.c -lm
       vaespec conformance --program "./vae {request} {answer}"
       vaespec conformance --program-serve ./vae

   Sums are added in double. A function that takes a Map consumes it: its memory is used for the result, or freed. */

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROTOCOL "vaespec-program/1"
static const double EPS = 1e-6; /* of every norm; most frameworks' default is 1e-5 */
enum { PATH = 4096, RANK = 4 };

/* -- Leaving a case: with the word that says why, and a sentence ------------------------------------------------- */

static jmp_buf leave;
static const char *why;
static char sentence[1024];

static void stop(const char *word, const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(sentence, sizeof sentence, format, values);
    va_end(values);
    why = word;
    longjmp(leave, 1);
}

#define refuse(...) stop("error", __VA_ARGS__)
#define lack(...) stop("not_supported", __VA_ARGS__)

/* -- Memory: everything that is left is freed after each case ---------------------------------------------------- */

typedef union Block Block;
union Block {
    struct { Block *before, *after; } links;
    double aligned[2];
};
static Block blocks = {{&blocks, &blocks}};

static void *take(size_t size) {
    Block *block = malloc(sizeof *block + size);
    if (!block) refuse("there is no memory for %zu bytes", size);
    block->links.before = &blocks;
    block->links.after = blocks.links.after;
    block->links.after->links.before = block;
    blocks.links.after = block;
    return block + 1;
}

static void drop(void *memory) {
    Block *block = (Block *)memory - 1;
    block->links.before->links.after = block->links.after;
    block->links.after->links.before = block->links.before;
    free(block);
}

static void drop_everything(void) {
    while (blocks.links.after != &blocks) drop(blocks.links.after + 1);
}

static char *text(const char *format, ...) {
    char line[PATH];
    va_list values;
    va_start(values, format);
    int length = vsnprintf(line, sizeof line, format, values);
    va_end(values);
    if (length < 0 || length >= PATH) refuse("a name has more than %d characters", PATH);
    return strcpy(take((size_t)length + 1), line);
}

/* -- Files ------------------------------------------------------------------------------------------------------- */

typedef struct { char *bytes; size_t size; } File;

static File read_file(const char *path) {
    FILE *stream = fopen(path, "rb");
    if (!stream) refuse("%s cannot be opened: %s", path, strerror(errno));
    fseek(stream, 0, SEEK_END);
    File file = {NULL, (size_t)ftell(stream)};
    rewind(stream);
    file.bytes = take(file.size + 1);
    size_t got = fread(file.bytes, 1, file.size, stream);
    fclose(stream);
    if (got != file.size) refuse("%s cannot be read", path);
    file.bytes[file.size] = 0;
    return file;
}

/* An answer is written under another name and then renamed, so that it appears whole. */
static FILE *begin_file(const char *path) {
    FILE *stream = fopen(text("%s.part", path), "wb");
    if (!stream) refuse("%s cannot be written: %s", path, strerror(errno));
    return stream;
}

static void end_file(FILE *stream, const char *path) {
    int failed = ferror(stream);
    if (fclose(stream) || failed || rename(text("%s.part", path), path)) refuse("%s cannot be written", path);
}

/* -- JSON: objects and lists are linked lists of their members --------------------------------------------------- */

typedef struct Json Json;
struct Json {
    char type; /* one of { [ " 0 t f n */
    char *key, *string;
    double number;
    Json *first, *next;
};

static const char *skip_space(const char *at) { return at + strspn(at, " \t\r\n"); }

static const char *parse_string(const char *at, char **result) {
    if (*at != '"') refuse("JSON: expected a string at %.20s", at);
    char *to = *result = take(strlen(at));
    for (at++; *at && *at != '"'; at++) {
        if (*at == '\\') {
            const char *escape = strchr("nntt\"\"\\\\//", *++at);
            if (!*at || !escape) refuse("JSON: an escape sequence that this program does not know");
            *to++ = *at == 'n' ? '\n' : *at == 't' ? '\t' : *at;
        } else {
            *to++ = *at;
        }
    }
    if (!*at) refuse("JSON: a string without an end");
    *to = 0;
    return at + 1;
}

static const char *parse(const char *at, Json *value, int depth) {
    at = skip_space(at);
    *value = (Json){.type = *at};
    if (depth > 32) refuse("JSON: it is nested too deeply");
    if (*at == '"') return parse_string(at, &value->string);
    if (*at == '{' || *at == '[') {
        char end = *at == '{' ? '}' : ']';
        Json **last = &value->first;
        at = skip_space(at + 1);
        while (*at != end) {
            Json *member = take(sizeof *member);
            char *key = NULL;
            if (end == '}') {
                at = skip_space(parse_string(at, &key));
                if (*at++ != ':') refuse("JSON: a key without a colon");
            }
            at = skip_space(parse(at, member, depth + 1));
            member->key = key;
            *last = member;
            last = &member->next;
            if (*at == ',') at = skip_space(at + 1);
            else if (*at != end) refuse("JSON: expected , or %c at %.20s", end, at);
        }
        return at + 1;
    }
    for (const char **word = (const char *[]){"true", "false", "null", NULL}; *word; word++)
        if (!strncmp(at, *word, strlen(*word))) return at + strlen(*word);
    char *end;
    value->type = '0';
    value->number = strtod(at, &end);
    if (end == at) refuse("JSON: expected a value at %.20s", at);
    return end;
}

static Json *parsed(const char *content) {
    Json *value = take(sizeof *value);
    parse(content, value, 0);
    return value;
}

static const Json *member(const Json *object, const char *key) {
    for (const Json *at = object->first; at; at = at->next)
        if (at->key && !strcmp(at->key, key) && at->type != 'n') return at;
    return NULL;
}

static const char *string_of(const Json *object, const char *key, const char *otherwise) {
    const Json *value = member(object, key);
    if (!value && otherwise) return otherwise;
    if (!value || value->type != '"') refuse("%s is missing, or no string", key);
    return value->string;
}

static long number_of(const Json *object, const char *key) {
    const Json *value = member(object, key);
    if (!value || value->type != '0') refuse("%s is missing, or no number", key);
    return (long)value->number;
}

static int is_true(const Json *object, const char *key) {
    const Json *value = member(object, key);
    return value && value->type == 't';
}

static const Json *item(const Json *list, int i) {
    const Json *at = list ? list->first : NULL;
    while (at && i--) at = at->next;
    if (!at) refuse("a list of config.json is too short");
    return at;
}

static int length(const Json *list) {
    int n = 0;
    for (const Json *at = list ? list->first : NULL; at; at = at->next) n++;
    return n;
}

/* -- safetensors: eight bytes of length, a table in JSON, and the numbers ---------------------------------------- */

typedef struct { char *name; long shape[RANK]; int rank, read; float *numbers; } Tensor;
typedef struct { Tensor *tensors; int count; } Tensors;

static void read_tensor(Tensor *tensor, const Json *row, const char *data, size_t size) {
    size_t count = 1, first = (size_t)item(member(row, "data_offsets"), 0)->number;
    size_t end = (size_t)item(member(row, "data_offsets"), 1)->number;
    *tensor = (Tensor){.name = row->key};
    if (length(member(row, "shape")) > RANK) refuse("%s has more than %d axes", row->key, RANK);
    for (const Json *n = member(row, "shape")->first; n; n = n->next)
        count *= (size_t)(tensor->shape[tensor->rank++] = (long)n->number);
    if (strcmp(string_of(row, "dtype", NULL), "F32")) return; /* a tensor without numbers here */
    if (end < first || end > size || end - first != count * sizeof(float)) refuse("%s is not all there", row->key);
    memcpy(tensor->numbers = take(end - first), data + first, end - first);
}

static Tensors read_tensors(const char *path) {
    File file = read_file(path);
    uint64_t header = 0;
    for (int i = 7; i >= 0; i--) header = header << 8 | (file.size < 8 ? 0xff : (unsigned char)file.bytes[i]);
    if (header > file.size - 8) refuse("%s ends inside its header", path);
    char *data = file.bytes + 8 + header, *table = take(header + 1);
    memcpy(table, file.bytes + 8, header);
    table[header] = 0;
    const Json *rows = parsed(table);
    Tensors result = {take((size_t)length(rows) * sizeof(Tensor) + 1), 0};
    for (const Json *row = rows->first; row; row = row->next)
        if (strcmp(row->key, "__metadata__"))
            read_tensor(&result.tensors[result.count++], row, data, file.size - 8 - header);
    drop(file.bytes);
    return result;
}

static Tensor *find(Tensors tensors, const char *name) {
    for (int i = 0; i < tensors.count; i++)
        if (!strcmp(tensors.tensors[i].name, name)) return &tensors.tensors[i];
    refuse("tensor %s is missing", name);
    return NULL;
}

/* -- Maps: a batch of images or of what layers make of them, (batch, channels, height, width) -------------------- */

typedef struct { long b, c, h, w; float *x; } Map;

static size_t size_of(Map m) { return (size_t)(m.b * m.c * m.h * m.w) * sizeof(float); }
static float *plane(Map m, long b, long c) { return m.x + (b * m.c + c) * m.h * m.w; }

static Map new_map(long b, long c, long h, long w) {
    Map m = {b, c, h, w, NULL};
    m.x = take(size_of(m));
    return m;
}

static Map copy(Map m) {
    Map result = new_map(m.b, m.c, m.h, m.w);
    memcpy(result.x, m.x, size_of(m));
    return result;
}

/* The channels from first to first + count. */
static Map channels(Map m, long first, long count) {
    Map part = new_map(m.b, count, m.h, m.w);
    for (long b = 0; b < m.b; b++)
        memcpy(plane(part, b, 0), plane(m, b, first), size_of(part) / (size_t)m.b);
    return part;
}

/* -- The model: a config, its weights, and the results that are answered ----------------------------------------- */

typedef struct Result Result;
struct Result { const char *name; Map map; Result *next; };
typedef struct { const Json *config; Tensors weights; int layers; Result *results; } Model;

static void answer(Model *model, const char *name, Map map) {
    Result *result = take(sizeof *result);
    *result = (Result){name, map, model->results};
    model->results = result;
}

/* Notes the result of a layer, if the request asks for them. */
static Map noted(Model *model, const char *layer, Map y) {
    if (model->layers) answer(model, text("layer.%s", layer), copy(y));
    return y;
}

static const float *weight(Model *model, const char *layer, const char *leaf, int rank, long o, long i, long k) {
    Tensor *tensor = find(model->weights, text("%s.%s", layer, leaf));
    const long shape[RANK] = {o, i, k, k};
    if (tensor->rank != rank || memcmp(tensor->shape, shape, (size_t)rank * sizeof *shape) || !tensor->numbers)
        refuse("tensor %s.%s has another shape or dtype than the config says", layer, leaf);
    tensor->read = 1;
    return tensor->numbers;
}

/* -- Layers: one formula each ------------------------------------------------------------------------------------ */

typedef struct { int kernel, stride, before, after, axes; } Geometry; /* zeros before: above and on the left */
static const Geometry SAME = {3, 1, 1, 1, 4}, DOWN = {3, 2, 0, 1, 4}, POINT = {1, 1, 0, 0, 4}, LINEAR = {1, 1, 0, 0, 2};

/* Adds w · x to one row of the result, for one tap of the kernel. */
static void add_tap(double *sums, long width, const float *row, long n, double w, long first, int stride) {
    long from = first < 0 ? (-first + stride - 1) / stride : 0;
    for (long x = from; x < width && first + x * stride < n; x++) sums[x] += w * row[first + x * stride];
}

static Map conv(Model *model, const char *name, Map x, long out, Geometry g) {
    const float *w = weight(model, name, "weight", g.axes, out, x.c, g.kernel);
    const float *bias = weight(model, name, "bias", 1, out, 0, 0);
    Map y = new_map(x.b, out, (x.h + g.before + g.after - g.kernel) / g.stride + 1,
                    (x.w + g.before + g.after - g.kernel) / g.stride + 1);
    double *sums = take((size_t)(y.w + 1) * sizeof *sums);
    for (long b = 0; b < y.b; b++)
        for (long o = 0; o < out; o++)
            for (long r = 0; r < y.h; r++) {
                for (long c = 0; c < y.w; c++) sums[c] = bias[o];
                for (long i = 0; i < x.c; i++)
                    for (long u = 0; u < g.kernel; u++) {
                        long row = r * g.stride + u - g.before;
                        if (row < 0 || row >= x.h) continue;
                        for (long v = 0; v < g.kernel; v++)
                            add_tap(sums, y.w, plane(x, b, i) + row * x.w, x.w,
                                    w[((o * x.c + i) * g.kernel + u) * g.kernel + v], v - g.before, g.stride);
                    }
                for (long c = 0; c < y.w; c++) plane(y, b, o)[r * y.w + c] = (float)sums[c];
            }
    drop(sums);
    drop(x.x);
    return noted(model, name, y);
}

/* (x - mean) / sqrt(variance + eps) over each group of channels, with a scale and a shift per channel. */
static Map group_norm(Model *model, const char *name, Map x) {
    const float *scale = weight(model, name, "weight", 1, x.c, 0, 0);
    const float *shift = weight(model, name, "bias", 1, x.c, 0, 0);
    long groups = number_of(model->config, "norm_num_groups"), wide = x.c / groups, n = wide * x.h * x.w;
    for (long b = 0; b < x.b; b++)
        for (long g = 0; g < groups; g++) {
            float *group = plane(x, b, g * wide);
            double mean = 0, variance = 0;
            for (long i = 0; i < n; i++) mean += group[i];
            mean /= (double)n;
            for (long i = 0; i < n; i++) variance += (group[i] - mean) * (group[i] - mean);
            double factor = 1 / sqrt(variance / (double)n + EPS);
            for (long i = 0; i < n; i++) {
                long c = g * wide + i / (x.h * x.w);
                group[i] = (float)((group[i] - mean) * factor * scale[c] + shift[c]);
            }
        }
    return noted(model, name, x);
}

static Map silu(Map x) {
    for (size_t i = 0; i < size_of(x) / sizeof(float); i++) x.x[i] = (float)(x.x[i] / (1 + exp(-(double)x.x[i])));
    return x;
}

static Map add(Map x, Map y) {
    for (size_t i = 0; i < size_of(x) / sizeof(float); i++) x.x[i] += y.x[i];
    drop(y.x);
    return x;
}

static Map norm_silu_conv(Model *model, const char *norm, const char *name, Map x, long out) {
    return conv(model, name, silu(group_norm(model, norm, x)), out, SAME);
}

/* x + conv2(silu(norm2(conv1(silu(norm1(x)))))), with a 1 x 1 convolution of x if the width changes. */
static Map resnet(Model *model, const char *name, Map x, long out) {
    Map h = norm_silu_conv(model, text("%s.norm1", name), text("%s.conv1", name), copy(x), out);
    h = norm_silu_conv(model, text("%s.norm2", name), text("%s.conv2", name), h, out);
    if (x.c != out) x = conv(model, text("%s.conv_shortcut", name), x, out, POINT);
    return noted(model, name, add(x, h));
}

/* softmax(scale · Q Kᵀ) V over all pixels, with one head. */
static Map attend(Map q, Map k, Map v) {
    long n = q.h * q.w;
    double *p = take((size_t)(n + 1) * sizeof *p), scale = 1 / sqrt((double)q.c);
    Map y = new_map(q.b, q.c, q.h, q.w);
    for (long b = 0; b < q.b; b++)
        for (long i = 0; i < n; i++) {
            double largest = -INFINITY, total = 0;
            for (long j = 0; j < n; j++) p[j] = 0;
            for (long c = 0; c < q.c; c++)
                for (long j = 0; j < n; j++) p[j] += scale * plane(q, b, c)[i] * plane(k, b, c)[j];
            for (long j = 0; j < n; j++) largest = fmax(largest, p[j]);
            for (long j = 0; j < n; j++) total += p[j] = exp(p[j] - largest);
            for (long c = 0; c < q.c; c++) {
                double sum = 0;
                for (long j = 0; j < n; j++) sum += p[j] * plane(v, b, c)[j];
                plane(y, b, c)[i] = (float)(sum / total);
            }
        }
    drop(p), drop(q.x), drop(k.x), drop(v.x);
    return y;
}

/* x + to_out(attend(to_q(t), to_k(t), to_v(t))) with t = norm(x). */
static Map attention(Model *model, const char *name, Map x) {
    Map t = group_norm(model, text("%s.group_norm", name), copy(x));
    Map q = conv(model, text("%s.to_q", name), copy(t), x.c, LINEAR);
    Map k = conv(model, text("%s.to_k", name), copy(t), x.c, LINEAR);
    Map v = conv(model, text("%s.to_v", name), t, x.c, LINEAR);
    Map h = conv(model, text("%s.to_out.0", name), attend(q, k, v), x.c, LINEAR);
    return noted(model, name, add(x, h));
}

/* Repeats every pixel in a square of four. */
static Map doubled(Map x) {
    Map y = new_map(x.b, x.c, 2 * x.h, 2 * x.w);
    for (long c = 0; c < x.b * x.c; c++)
        for (long i = 0; i < y.h; i++)
            for (long j = 0; j < y.w; j++)
                y.x[(c * y.h + i) * y.w + j] = x.x[(c * x.h + i / 2) * x.w + j / 2];
    drop(x.x);
    return y;
}

static Map upsample(Model *model, const char *name, Map x) {
    return noted(model, name, conv(model, text("%s.conv", name), doubled(x), x.c, SAME));
}

static Map downsample(Model *model, const char *name, Map x) {
    return noted(model, name, conv(model, text("%s.conv", name), x, x.c, DOWN));
}

/* -- The two halves, from the first layer to the last ------------------------------------------------------------ */

static long width_of(const Json *widths, int level) { return (long)item(widths, level)->number; }

static Map stage(Model *model, const char *block, const char *types, int level, Map x, long out, long resnets) {
    const char *type = item(member(model->config, types), level)->string;
    for (long i = 0; i < resnets; i++) {
        x = resnet(model, text("%s.resnets.%ld", block, i), x, out);
        if (!strncmp(type, "Attn", 4)) x = attention(model, text("%s.attentions.%ld", block, i), x);
    }
    return x;
}

static Map middle(Model *model, const char *block, Map x) {
    x = resnet(model, text("%s.resnets.0", block), x, x.c);
    if (is_true(model->config, "mid_block_add_attention")) x = attention(model, text("%s.attentions.0", block), x);
    return resnet(model, text("%s.resnets.1", block), x, x.c);
}

static Map head(Model *model, const char *half, Map x, long out) {
    x = silu(group_norm(model, text("%s.conv_norm_out", half), x));
    return conv(model, text("%s.conv_out", half), noted(model, text("%s.conv_act", half), x), out, SAME);
}

/* Images -> mean and log-variance, in one map. */
static Map encoder(Model *model, Map x) {
    const Json *config = model->config, *widths = member(config, "block_out_channels");
    long moments = 2 * number_of(config, "latent_channels");
    x = conv(model, "encoder.conv_in", x, width_of(widths, 0), SAME);
    for (int level = 0; level < length(widths); level++) {
        const char *block = text("encoder.down_blocks.%d", level);
        x = stage(model, block, "down_block_types", level, x, width_of(widths, level),
                  number_of(config, "layers_per_block"));
        if (level + 1 < length(widths)) x = downsample(model, text("%s.downsamplers.0", block), x);
    }
    x = middle(model, "encoder.mid_block", x);
    x = head(model, "encoder", x, moments);
    return is_true(config, "use_quant_conv") ? conv(model, "quant_conv", x, moments, POINT) : x;
}

/* Latents -> images. */
static Map decoder(Model *model, Map x) {
    const Json *config = model->config, *widths = member(config, "decoder_block_out_channels");
    if (!widths) widths = member(config, "block_out_channels");
    int levels = length(widths);
    if (is_true(config, "use_post_quant_conv")) x = conv(model, "post_quant_conv", x, x.c, POINT);
    x = conv(model, "decoder.conv_in", x, width_of(widths, levels - 1), SAME);
    x = middle(model, "decoder.mid_block", x);
    for (int level = 0; level < levels; level++) {
        const char *block = text("decoder.up_blocks.%d", level);
        x = stage(model, block, "up_block_types", level, x, width_of(widths, levels - 1 - level),
                  number_of(config, "layers_per_block") + 1);
        if (level + 1 < levels) x = upsample(model, text("%s.upsamplers.0", block), x);
    }
    return head(model, "decoder", x, number_of(config, "out_channels"));
}

static void encode(Model *model, Map images) {
    Map moments = encoder(model, images);
    Map mean = channels(moments, 0, moments.c / 2), logvar = channels(moments, moments.c / 2, moments.c / 2);
    for (size_t i = 0; i < size_of(logvar) / sizeof(float); i++) logvar.x[i] = fminf(fmaxf(logvar.x[i], -30), 20);
    answer(model, "mean", mean);
    answer(model, "logvar", logvar);
}

static void decode(Model *model, Map latents) { answer(model, "sample", decoder(model, latents)); }

/* -- Loading: what this program does not do is said, and wrong weights are refused ------------------------------- */

static void require_supported(const Json *config) {
    const char *activation = string_of(config, "act_fn", "silu");
    if (strcmp(activation, "silu") && strcmp(activation, "swish")) lack("act_fn %s", activation);
}

/* Runs both halves on a batch of no images: that reads every weight, and a tensor that is not read is none of ours. */
static void require_all_and_no_others(Model *model) {
    int layers = model->layers;
    model->layers = 0;
    drop(encoder(model, new_map(0, number_of(model->config, "in_channels"), 64, 64)).x);
    drop(decoder(model, new_map(0, number_of(model->config, "latent_channels"), 2, 2)).x);
    model->layers = layers;
    for (int i = 0; i < model->weights.count; i++) {
        const Tensor *tensor = &model->weights.tensors[i];
        int of_latents = member(model->config, "patch_size") && !strncmp(tensor->name, "bn.", 3);
        if (!tensor->read && !of_latents) refuse("tensor %s is unexpected", tensor->name);
    }
}

static Model load(const char *folder, int layers) {
    Model model = {parsed(read_file(text("%s/config.json", folder)).bytes), {NULL, 0}, layers, NULL};
    require_supported(model.config);
    model.weights = read_tensors(text("%s/diffusion_pytorch_model.safetensors", folder));
    require_all_and_no_others(&model);
    return model;
}

/* -- The protocol: a folder with a request in, a folder with answers out ----------------------------------------- */

static Map read_input(const char *path, const char *name) {
    Tensor *tensor = find(read_tensors(path), name);
    if (tensor->rank != RANK || !tensor->numbers) refuse("%s: expected four axes of float32", name);
    return (Map){tensor->shape[0], tensor->shape[1], tensor->shape[2], tensor->shape[3], tensor->numbers};
}

static void write_results(const char *path, const Result *results) {
    size_t end = 0;
    char *table = text("%s", "");
    for (const Result *at = results; at; at = at->next) {
        Map m = at->map;
        size_t first = end;
        end += size_of(m);
        char *row = text("\"%s\":{\"dtype\":\"F32\",\"shape\":[%ld,%ld,%ld,%ld],\"data_offsets\":[%zu,%zu]}", at->name,
                         m.b, m.c, m.h, m.w, first, end);
        char *longer = take(strlen(table) + strlen(row) + 2);
        sprintf(longer, "%s%s%s", table, *table ? "," : "", row);
        drop(table), drop(row);
        table = longer;
    }
    uint64_t size = strlen(table) + 2;
    FILE *stream = begin_file(path);
    for (int i = 0; i < 8; i++) fputc((int)(size >> 8 * i & 0xff), stream);
    fprintf(stream, "{%s}", table);
    for (const Result *at = results; at; at = at->next) fwrite(at->map.x, 1, size_of(at->map), stream);
    end_file(stream, path);
}

static void write_words(const char *path, const char *key, const char *words) {
    FILE *stream = begin_file(path);
    fprintf(stream, "{\"%s\": \"", key);
    for (; *words; words++) {
        if (*words == '"' || *words == '\\') fputc('\\', stream);
        fputc((unsigned char)*words < ' ' ? ' ' : *words, stream);
    }
    fprintf(stream, "\"}\n");
    end_file(stream, path);
}

static void describe(const char *path) {
    FILE *stream = begin_file(path);
    fprintf(stream, "{\"name\": \"vae.c\", \"dtypes\": [\"float32\"]}\n");
    end_file(stream, path);
}

static void compute(const Json *row, const char *request, const char *path) {
    const char *call = string_of(row, "call", NULL), *dtype = string_of(row, "dtype", NULL);
    int encodes = !strcmp(call, "encode");
    if (!encodes && strcmp(call, "decode")) lack("the call %s", call);
    if (strcmp(dtype, "float32")) lack("%s: this program computes in float32", dtype);
    Model model = load(text("%s/%s", request, string_of(row, "model", NULL)), is_true(row, "layers"));
    Map x = read_input(text("%s/%s", request, string_of(row, "input", NULL)), encodes ? "images" : "latents");
    (encodes ? encode : decode)(&model, x);
    write_results(path, model.results);
}

/* Answers one case. The row of request.json is parsed anew for each, since all memory is freed after each. */
static int answer_case(const char *request, const char *folder, int number) {
    const char *volatile id = NULL;
    int volatile more = 1;
    if (!setjmp(leave)) {
        const Json *content = parsed(read_file(text("%s/request.json", request)).bytes);
        const Json *cases = member(content, "cases");
        if (strcmp(string_of(content, "protocol", NULL), PROTOCOL)) refuse("this program knows %s only", PROTOCOL);
        more = number < length(cases);
        if (more) {
            const Json *row = item(cases, number);
            id = string_of(row, "id", NULL);
            if (!strcmp(string_of(row, "call", NULL), "describe")) describe(text("%s/%s.json", folder, id));
            else compute(row, request, text("%s/%s.safetensors", folder, id));
        }
    } else if (!id) {
        fprintf(stderr, "%s\n", sentence);
        exit(1);
    } else if (!setjmp(leave)) {
        write_words(text("%s/%s.json", folder, id), why, text("%s", sentence));
    } else {
        fprintf(stderr, "%s\n", sentence);
        exit(1);
    }
    drop_everything();
    return more;
}

static void answer_request(const char *request, const char *folder) {
    for (int number = 0; answer_case(request, folder, number); number++) continue;
}

/* Each line of stdin names the folders of a request; a line on stdout says that it is answered. */
static void serve(void) {
    static char line[4 * PATH], request[PATH], folder[PATH];
    while (fgets(line, sizeof line, stdin)) {
        if (setjmp(leave)) {
            fprintf(stderr, "%s\n", sentence);
            exit(1);
        }
        const Json *folders = parsed(line);
        snprintf(request, sizeof request, "%s", string_of(folders, "request", NULL));
        snprintf(folder, sizeof folder, "%s", string_of(folders, "answer", NULL));
        drop_everything();
        answer_request(request, folder);
        puts("{\"done\": true}");
        fflush(stdout);
    }
}

int main(int count, char **arguments) {
    if (count == 3) answer_request(arguments[1], arguments[2]);
    else if (count == 1) serve();
    else return fprintf(stderr, "usage: %s REQUEST ANSWER, or without arguments to serve\n", arguments[0]), 2;
    return 0;
}
