#!/usr/bin/env node
// The VAE of Stable Diffusion in one file of JavaScript: encoder and decoder, in float32, for any size. It needs Node.
//
// It answers the requests of `vaespec conformance` by the protocol in docs/programs.md:
//
//     vaespec conformance --program "node vae.mjs {request} {answer}"
//     vaespec conformance --program-serve "node vae.mjs"
//
// Numbers of JavaScript are double, so sums are; a map keeps its results in float32.

import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";

const PROTOCOL = "vaespec-program/1";
const EPS = 1e-6; // of every norm; most frameworks' default is 1e-5

// -- Leaving a case: what this program does not do, and what is wrong -------------------------------------------------

class NotSupported extends Error {}
class Refused extends Error {}

function refuse(message) {
  throw new Refused(message);
}

// -- safetensors: eight bytes of length, a table in JSON, and the numbers ---------------------------------------------

const count = (shape) => shape.reduce((product, n) => product * n, 1);

function readTensors(path) {
  const bytes = readFileSync(path);
  const data = 8 + Number(bytes.readBigUInt64LE(0));
  const { __metadata__, ...table } = JSON.parse(bytes.toString("utf8", 8, data));
  const tensors = new Map();
  for (const [name, { dtype, shape, data_offsets }] of Object.entries(table)) {
    const [first, end] = data_offsets.map((offset) => bytes.byteOffset + data + offset);
    if (dtype === "F32" && end - first !== 4 * count(shape)) refuse(`tensor ${name} is not all there`);
    tensors.set(name, { dtype, shape, numbers: dtype === "F32" && new Float32Array(bytes.buffer.slice(first, end)) });
  }
  return tensors;
}

function writeTensors(path, maps) {
  const table = {};
  let end = 0;
  for (const [name, map] of maps) {
    const first = end;
    end += map.numbers.byteLength;
    table[name] = { dtype: "F32", shape: map.shape, data_offsets: [first, end] };
  }
  const header = Buffer.from(JSON.stringify(table));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  writeWhole(path, Buffer.concat([length, header, ...[...maps.values()].map((map) => Buffer.from(map.numbers.buffer))]));
}

// A file is written under another name and then renamed, so that it appears whole.
function writeWhole(path, content) {
  writeFileSync(`${path}.part`, content);
  renameSync(`${path}.part`, path);
}

// -- Maps: a batch of images or of what layers make of them, (batch, channels, height, width) -------------------------

class FeatureMap {
  constructor(batch, channels, height, width, numbers) {
    Object.assign(this, { batch, channels, height, width });
    this.numbers = numbers ?? new Float32Array(batch * channels * height * width);
  }

  get shape() {
    return [this.batch, this.channels, this.height, this.width];
  }

  get pixels() {
    return this.height * this.width;
  }

  // A view of `n` channels of an item, from channel c on.
  plane(b, c, n = 1) {
    const first = (b * this.channels + c) * this.pixels;
    return this.numbers.subarray(first, first + n * this.pixels);
  }

  // The channels from `first` to `first + n`.
  part(first, n) {
    const result = new FeatureMap(this.batch, n, this.height, this.width);
    for (let b = 0; b < this.batch; b++) result.plane(b, 0, n).set(this.plane(b, first, n));
    return result;
  }

  // A map of f(number, its index).
  map(f) {
    return new FeatureMap(...this.shape, this.numbers.map(f));
  }
}

// -- Layers: one formula each -----------------------------------------------------------------------------------------

const SAME = { kernel: 3, stride: 1, before: 1, after: 1, axes: 4 }; // zeros before: above and on the left
const DOWN = { kernel: 3, stride: 2, before: 0, after: 1, axes: 4 };
const POINT = { kernel: 1, stride: 1, before: 0, after: 0, axes: 4 };
const LINEAR = { ...POINT, axes: 2 };

// Adds w · x to one row of the result, for one tap of the kernel.
function addTap(sums, row, w, first, stride) {
  const from = Math.max(0, Math.ceil(-first / stride));
  const end = Math.min(sums.length, Math.ceil((row.length - first) / stride));
  for (let x = from; x < end; x++) sums[x] += w * row[first + x * stride];
}

function conv(model, name, x, out, { kernel, stride, before, after, axes }) {
  const w = model.weight(name, "weight", [out, x.channels, kernel, kernel].slice(0, axes));
  const bias = model.weight(name, "bias", [out]);
  const size = (n) => Math.floor((n + before + after - kernel) / stride) + 1;
  const y = new FeatureMap(x.batch, out, size(x.height), size(x.width));
  const sums = new Float64Array(y.width);
  for (let b = 0; b < y.batch; b++)
    for (let o = 0; o < out; o++)
      for (let r = 0; r < y.height; r++) {
        sums.fill(bias[o]);
        for (let i = 0; i < x.channels; i++)
          for (let u = 0; u < kernel; u++) {
            const from = r * stride + u - before;
            if (from < 0 || from >= x.height) continue;
            const row = x.plane(b, i).subarray(from * x.width, (from + 1) * x.width);
            for (let v = 0; v < kernel; v++)
              addTap(sums, row, w[((o * x.channels + i) * kernel + u) * kernel + v], v - before, stride);
          }
        y.plane(b, o).set(sums, r * y.width);
      }
  return model.noted(name, y);
}

// (x - mean) / sqrt(variance + eps) over each group of channels, with a scale and a shift per channel.
function groupNorm(model, name, x) {
  const scale = model.weight(name, "weight", [x.channels]);
  const shift = model.weight(name, "bias", [x.channels]);
  const groups = model.config.norm_num_groups;
  const wide = x.channels / groups;
  const y = new FeatureMap(...x.shape);
  for (let b = 0; b < x.batch; b++)
    for (let g = 0; g < groups; g++) {
      const group = x.plane(b, g * wide, wide);
      const mean = group.reduce((sum, n) => sum + n, 0) / group.length;
      const variance = group.reduce((sum, n) => sum + (n - mean) ** 2, 0) / group.length;
      const factor = 1 / Math.sqrt(variance + EPS);
      const result = y.plane(b, g * wide, wide);
      group.forEach((n, i) => {
        const c = g * wide + Math.floor(i / x.pixels);
        result[i] = (n - mean) * factor * scale[c] + shift[c];
      });
    }
  return model.noted(name, y);
}

const silu = (x) => x.map((n) => n / (1 + Math.exp(-n)));
const add = (x, y) => x.map((n, i) => n + y.numbers[i]);

function normSiluConv(model, norm, name, x, out) {
  return conv(model, name, silu(groupNorm(model, norm, x)), out, SAME);
}

// x + conv2(silu(norm2(conv1(silu(norm1(x)))))), with a 1 x 1 convolution of x if the width changes.
function resnet(model, name, x, out) {
  let h = normSiluConv(model, `${name}.norm1`, `${name}.conv1`, x, out);
  h = normSiluConv(model, `${name}.norm2`, `${name}.conv2`, h, out);
  if (x.channels !== out) x = conv(model, `${name}.conv_shortcut`, x, out, POINT);
  return model.noted(name, add(x, h));
}

// softmax(scale · Q Kᵀ) V over all pixels, with one head.
function attend(q, k, v) {
  const n = q.pixels;
  const scale = 1 / Math.sqrt(q.channels);
  const y = new FeatureMap(...q.shape);
  const p = new Float64Array(n);
  for (let b = 0; b < q.batch; b++)
    for (let i = 0; i < n; i++) {
      p.fill(0);
      for (let c = 0; c < q.channels; c++) addTap(p, k.plane(b, c), scale * q.plane(b, c)[i], 0, 1);
      const largest = p.reduce((a, b) => Math.max(a, b), -Infinity);
      for (let j = 0; j < n; j++) p[j] = Math.exp(p[j] - largest);
      const total = p.reduce((sum, e) => sum + e, 0);
      for (let c = 0; c < q.channels; c++) {
        const values = v.plane(b, c);
        let sum = 0;
        for (let j = 0; j < n; j++) sum += p[j] * values[j];
        y.plane(b, c)[i] = sum / total;
      }
    }
  return y;
}

// x + to_out(attend(to_q(t), to_k(t), to_v(t))) with t = norm(x).
function attention(model, name, x) {
  const t = groupNorm(model, `${name}.group_norm`, x);
  const [q, k, v] = ["to_q", "to_k", "to_v"].map((part) => conv(model, `${name}.${part}`, t, x.channels, LINEAR));
  const h = conv(model, `${name}.to_out.0`, attend(q, k, v), x.channels, LINEAR);
  return model.noted(name, add(x, h));
}

// Repeats every pixel in a square of four.
function doubled(x) {
  const y = new FeatureMap(x.batch, x.channels, 2 * x.height, 2 * x.width);
  for (let i = 0; i < y.numbers.length; i++) {
    const column = i % y.width;
    const row = Math.floor(i / y.width) % y.height;
    const plane = Math.floor(i / y.pixels);
    y.numbers[i] = x.numbers[plane * x.pixels + (row >> 1) * x.width + (column >> 1)];
  }
  return y;
}

const upsample = (model, name, x) => model.noted(name, conv(model, `${name}.conv`, doubled(x), x.channels, SAME));
const downsample = (model, name, x) => model.noted(name, conv(model, `${name}.conv`, x, x.channels, DOWN));

// -- The two halves, from the first layer to the last -----------------------------------------------------------------

function stage(model, block, type, x, out, resnets) {
  for (let i = 0; i < resnets; i++) {
    x = resnet(model, `${block}.resnets.${i}`, x, out);
    if (type.startsWith("Attn")) x = attention(model, `${block}.attentions.${i}`, x);
  }
  return x;
}

function middle(model, block, x) {
  x = resnet(model, `${block}.resnets.0`, x, x.channels);
  if (model.config.mid_block_add_attention) x = attention(model, `${block}.attentions.0`, x);
  return resnet(model, `${block}.resnets.1`, x, x.channels);
}

function head(model, half, x, out) {
  x = model.noted(`${half}.conv_act`, silu(groupNorm(model, `${half}.conv_norm_out`, x)));
  return conv(model, `${half}.conv_out`, x, out, SAME);
}

// Images -> mean and log-variance, in one map.
function encoder(model, x) {
  const { config } = model;
  const widths = config.block_out_channels;
  const moments = 2 * config.latent_channels;
  x = conv(model, "encoder.conv_in", x, widths[0], SAME);
  widths.forEach((width, level) => {
    const block = `encoder.down_blocks.${level}`;
    x = stage(model, block, config.down_block_types[level], x, width, config.layers_per_block);
    if (level + 1 < widths.length) x = downsample(model, `${block}.downsamplers.0`, x);
  });
  x = middle(model, "encoder.mid_block", x);
  x = head(model, "encoder", x, moments);
  return config.use_quant_conv ? conv(model, "quant_conv", x, moments, POINT) : x;
}

// Latents -> images.
function decoder(model, x) {
  const { config } = model;
  const widths = [...(config.decoder_block_out_channels ?? config.block_out_channels)].reverse();
  if (config.use_post_quant_conv) x = conv(model, "post_quant_conv", x, x.channels, POINT);
  x = conv(model, "decoder.conv_in", x, widths[0], SAME);
  x = middle(model, "decoder.mid_block", x);
  widths.forEach((width, level) => {
    const block = `decoder.up_blocks.${level}`;
    x = stage(model, block, config.up_block_types[level], x, width, config.layers_per_block + 1);
    if (level + 1 < widths.length) x = upsample(model, `${block}.upsamplers.0`, x);
  });
  return head(model, "decoder", x, config.out_channels);
}

function encode(model, images) {
  const moments = encoder(model, images);
  const half = moments.channels / 2;
  const logvar = moments.part(half, half).map((n) => Math.min(Math.max(n, -30), 20));
  return new Map([["mean", moments.part(0, half)], ["logvar", logvar]]);
}

const decode = (model, latents) => new Map([["sample", decoder(model, latents)]]);

// -- The model: a config and its weights. What this program does not do is said, and wrong weights are refused --------

class Model {
  constructor(folder) {
    this.config = JSON.parse(readFileSync(join(folder, "config.json"), "utf8"));
    this.layers = null; // a table of the results of layers, if they are asked for
    if (!["silu", "swish"].includes(this.config.act_fn)) throw new NotSupported(`act_fn ${this.config.act_fn}`);
    this.weights = readTensors(join(folder, "diffusion_pytorch_model.safetensors"));
    this.requireAllAndNoOthers();
  }

  weight(layer, leaf, shape) {
    const name = `${layer}.${leaf}`;
    const tensor = this.weights.get(name) ?? refuse(`tensor ${name} is missing`);
    if (tensor.dtype !== "F32" || tensor.shape.join() !== shape.join())
      refuse(`tensor ${name} is ${tensor.dtype} [${tensor.shape}], expected F32 [${shape}]`);
    this.read.add(name);
    return tensor.numbers;
  }

  // Runs both halves on a batch of no images: that reads every weight, and a tensor that is not read is none of ours.
  requireAllAndNoOthers() {
    this.read = new Set();
    encoder(this, new FeatureMap(0, this.config.in_channels, 64, 64));
    decoder(this, new FeatureMap(0, this.config.latent_channels, 2, 2));
    for (const name of this.weights.keys())
      if (!this.read.has(name) && !(this.config.patch_size && name.startsWith("bn.")))
        refuse(`tensor ${name} is unexpected`);
  }

  // Notes the result of a layer, if the request asks for them.
  noted(layer, y) {
    this.layers?.set(`layer.${layer}`, y);
    return y;
  }
}

// -- The protocol: a folder with a request in, a folder with answers out ----------------------------------------------

const CALLS = { encode: [encode, "images"], decode: [decode, "latents"] };

function readInput(path, name) {
  const { dtype, shape, numbers } = readTensors(path).get(name) ?? refuse(`${path} has no tensor ${name}`);
  if (dtype !== "F32" || shape.length !== 4) refuse(`${name}: expected four axes of float32`);
  return new FeatureMap(...shape, numbers);
}

function compute({ call, dtype, model: folder, input, layers }, request) {
  if (!(call in CALLS)) throw new NotSupported(`the call ${call}`);
  if (dtype !== "float32") throw new NotSupported(`${dtype}: this program computes in float32`);
  const [run, name] = CALLS[call];
  const model = new Model(join(request, folder));
  if (layers) model.layers = new Map();
  const results = run(model, readInput(join(request, input), name));
  return new Map([...results, ...(model.layers ?? [])]);
}

function answerCase(row, request, folder) {
  const words = (value) => writeWhole(join(folder, `${row.id}.json`), JSON.stringify(value));
  if (row.call === "describe") return words({ name: "vae.mjs", dtypes: ["float32"] });
  try {
    writeTensors(join(folder, `${row.id}.safetensors`), compute(row, request));
  } catch (error) {
    if (error instanceof NotSupported) words({ not_supported: error.message });
    else if (error instanceof Refused) words({ error: error.message });
    else throw error;
  }
}

function answerRequest(request, folder) {
  const { protocol, cases } = JSON.parse(readFileSync(join(request, "request.json"), "utf8"));
  if (protocol !== PROTOCOL) throw new Error(`${protocol}: this program knows ${PROTOCOL} only`);
  for (const row of cases) answerCase(row, request, folder);
}

// Each line of stdin names the folders of a request; a line on stdout says that it is answered.
async function serve() {
  for await (const line of createInterface({ input: process.stdin })) {
    const { request, answer } = JSON.parse(line);
    answerRequest(request, answer);
    process.stdout.write('{"done": true}\n');
  }
}

const folders = process.argv.slice(2);
if (folders.length === 2) answerRequest(...folders);
else await serve();
