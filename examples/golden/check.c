/* Compares an answer with a golden pack of vaespec: check PACK ANSWER.safetensors [PREFIX]. Build: cc -O2 check.c -lm
   Exit code: 0 each output is within its budget; 1 one is not, or is missing; 2 the files cannot be compared.
   PREFIX: only the outputs whose names begin with it, but all of them. For little-endian machines. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef struct { const char *path; char *table, *data; unsigned long long length, size; } File;
typedef struct { char dtype[8], shape[64], *data; size_t begin, end, width; } Tensor;
static void stop(const char *path, const char *why) { fprintf(stderr, "check: %s %s\n", path, why); exit(2); }
static File opened(const char *path) { /* 8 bytes: the length of a table in JSON; the table; the numbers */
    File f = {path, NULL, NULL, -1, 0};
    FILE *stream = fopen(path, "rb");
    if (stream && !fseek(stream, 0, SEEK_END) && (f.size = ftell(stream)) > 8) f.data = malloc(f.size), rewind(stream);
    if (f.data && fread(f.data, 1, f.size, stream) == f.size) memcpy(&f.length, f.data, 8);
    if (!f.data || f.length > f.size - 8) stop(path, "cannot be read, or is no whole safetensors file");
    return f.table = memcpy(calloc(f.length + 1, 1), f.data + 8, f.length), f.data += 8 + f.length, f;
}
static int find(File f, const char *start, const char *name, Tensor *t) { /* whether there is a tensor start + name */
    char key[300], brace[2] = "", *p = f.table, *shape, *at;
    for (snprintf(key, sizeof key, "\"%s%s\"", start, name); !*brace; sscanf(p += strlen(key), " : %1[{]", brace))
        if (!(p = strstr(p, key))) return 0; /* metadata may have the name too, but no brace after it */
    if (!(at = strstr(p, "\"dtype\"")) || sscanf(at, "\"dtype\" : \"%7[A-Z0-9]", t->dtype) != 1 ||
        !(at = strstr(p, "\"data_offsets\"")) || sscanf(at, "\"data_offsets\" : [%zu ,%zu", &t->begin, &t->end) != 2 ||
        !(shape = strstr(p, "\"shape\"")) || !strchr(shape, ']') || !strstr("F64 F32 F16 BF16", t->dtype) ||
        t->begin > t->end || t->end > f.size - 8 - f.length) stop(f.path, "has a tensor that this program cannot read");
    for (int n = 0; (t->shape[n] = 0, *shape != ']') && n < 63; shape++) n += sscanf(shape, "%1[,0-9]", t->shape + n);
    return t->data = f.data + t->begin, t->width = strstr(t->dtype, "64") ? 8 : strstr(t->dtype, "32") ? 4 : 2, 1;
}
static double number(const Tensor *t, size_t i) {
    union { unsigned long long u; double d; float f; } v = {0};
    memcpy(&v, t->data + i * t->width, t->width);
    int e = v.u >> 10 & 31; /* float16 has a sign, 5 bits of exponent and 10 of mantissa; bfloat16 is half a float32 */
    if (!strcmp(t->dtype, "F16"))
        return e == 31 ? NAN : (v.u >> 15 ? -1 : 1) * ldexp((v.u & 1023) + (e ? 1024 : 0), (e ? e : 1) - 25);
    return t->width == 8 ? v.d : *t->dtype == 'B' ? (v.u <<= 16, v.f) : v.f;
}
static double used(const Tensor *r, const Tensor *a, double budget) { /* the share of the budget; NaN if a holds one */
    double dd = 0, rr = 0, most = 0, n = (r->end - r->begin) / r->width, y, d;
    for (size_t i = 0; i < n; i++, dd += d * d, rr += y * y, most = d > most || d != d ? d : most)
        y = number(r, i), d = fabs(number(a, i) - y);
    return most != most ? most : fmax(sqrt(dd / rr), most / sqrt(rr / n) / 30) / budget;
}
int main(int argc, char **argv) {
    if (argc < 3 || argc > 4) stop("needs", "PACK ANSWER.safetensors [PREFIX]");
    char path[4096], name[256], first[256] = "", *p, *prefix = argc == 4 ? argv[3] : "";
    snprintf(path, sizeof path, "%s/expected.safetensors", argv[1]);
    File pack = opened(path), answer = opened(argv[2]); Tensor b, r, a;
    int seen = 0, bare = !find(answer, "", "moments", &a); /* an answer has mean and logvar, or moments; and sample */
    for (p = pack.table; (p = strstr(p, "\"budget.")) && sscanf(p, "\"budget.%255[^\"]", name) == 1; p++) {
        int there = find(answer, "", name, &a), end = strstr("mean logvar", name) ? bare : !strcmp(name, "sample");
        if (strncmp(name, prefix, strlen(prefix)) || !(there || end || *prefix) || !find(pack, "", name, &r)) continue;
        int alike = there && !strcmp(a.shape, r.shape) && (a.end - a.begin) / a.width == (r.end - r.begin) / r.width;
        double share = alike && find(pack, "budget.", name, &b) ? used(&r, &a, number(&b, 0)) : NAN;
        if (seen++, !(share <= 1) && !*first) strcpy(first, name);
        printf("%-48s %8.3f of its budget%s\n", name, share, !there ? ": missing" : !alike ? ": wrong shape" : "");
    }
    if (!seen) stop(argv[2], "has no output whose name begins so");
    return printf("%s%s\n", *first ? "first outside its budget: " : "all within their budgets", first), *first != 0;
}
