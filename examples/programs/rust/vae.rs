//! The VAE of Stable Diffusion in one file of Rust: encoder and decoder, in float32, for any size, without a crate.
//!
//! It answers the requests of `vaespec conformance` by the protocol in docs/programs.md:
//!
//!     rustc -O --edition 2021 vae.rs
//!     vaespec conformance --program "./vae {request} {answer}"
//!     vaespec conformance --program-serve ./vae
//!
//! Sums are added in f64; a map keeps its results in f32.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::{env, fs, io, process};

const PROTOCOL: &str = "vaespec-program/1";
const EPS: f64 = 1e-6; // of every norm; most frameworks' default is 1e-5

/// Why a case has no result: what this program does not do, or what is wrong.
enum Failure {
    NotSupported(String),
    Refused(String),
}
use Failure::{NotSupported, Refused};

type Fallible<T> = Result<T, Failure>;

fn refuse<T>(message: impl Into<String>) -> Fallible<T> {
    Err(Refused(message.into()))
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Refused(error.to_string())
    }
}

// -- JSON --------------------------------------------------------------------------------------------------------------

#[derive(Clone)]
enum Json {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    fn parse(text: &str) -> Fallible<Json> {
        Parser { rest: text }.value(0)
    }

    fn get(&self, key: &str) -> &Json {
        let Json::Object(members) = self else { return &Json::Null };
        members.iter().find(|(name, _)| name == key).map_or(&Json::Null, |(_, value)| value)
    }

    fn text(&self, key: &str) -> Fallible<&str> {
        match self.get(key) {
            Json::Text(text) => Ok(text),
            _ => refuse(format!("{key} is missing, or no string")),
        }
    }

    fn number(&self, key: &str) -> Fallible<usize> {
        match self.get(key) {
            Json::Number(n) => Ok(*n as usize),
            _ => refuse(format!("{key} is missing, or no number")),
        }
    }

    fn is_true(&self, key: &str) -> bool {
        matches!(self.get(key), Json::Bool(true))
    }

    fn list(&self, key: &str) -> &[Json] {
        if let Json::List(items) = self.get(key) { items } else { &[] }
    }

    fn numbers(&self, key: &str) -> Vec<usize> {
        self.list(key).iter().filter_map(|n| if let Json::Number(n) = n { Some(*n as usize) } else { None }).collect()
    }

    fn texts(&self, key: &str) -> Vec<&str> {
        self.list(key).iter().filter_map(|t| if let Json::Text(t) = t { Some(t.as_str()) } else { None }).collect()
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    /// Takes a token, with the space before it, if it comes next.
    fn takes(&mut self, token: &str) -> bool {
        self.rest = self.rest.trim_start();
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn value(&mut self, depth: usize) -> Fallible<Json> {
        if depth > 32 {
            return refuse("JSON is nested too deeply");
        }
        for (word, value) in [("null", Json::Null), ("true", Json::Bool(true)), ("false", Json::Bool(false))] {
            if self.takes(word) {
                return Ok(value);
            }
        }
        if self.takes("\"") {
            return Ok(Json::Text(self.string()?));
        }
        if self.takes("[") {
            return Ok(Json::List(self.members("]", |parser| parser.value(depth + 1))?));
        }
        if self.takes("{") {
            return Ok(Json::Object(self.members("}", |parser| parser.member(depth + 1))?));
        }
        let end = self.rest.find(|c: char| !"+-.eE0123456789".contains(c)).unwrap_or(self.rest.len());
        let (number, rest) = self.rest.split_at(end);
        self.rest = rest;
        number.parse().map(Json::Number).or_else(|_| refuse("JSON: expected a value"))
    }

    fn members<T>(&mut self, end: &str, mut member: impl FnMut(&mut Self) -> Fallible<T>) -> Fallible<Vec<T>> {
        let mut members = Vec::new();
        while !self.takes(end) {
            if !members.is_empty() && !self.takes(",") {
                return refuse(format!("JSON: expected , or {end}"));
            }
            members.push(member(self)?);
        }
        Ok(members)
    }

    fn member(&mut self, depth: usize) -> Fallible<(String, Json)> {
        if !self.takes("\"") {
            return refuse("JSON: expected a key");
        }
        let key = self.string()?;
        if !self.takes(":") {
            return refuse("JSON: a key without a colon");
        }
        Ok((key, self.value(depth)?))
    }

    /// The rest of a string, behind its first quotation mark.
    fn string(&mut self) -> Fallible<String> {
        let mut result = String::new();
        let mut characters = self.rest.chars();
        loop {
            match characters.next() {
                Some('"') => break,
                Some('\\') => match characters.next() {
                    Some('n') => result.push('\n'),
                    Some('t') => result.push('\t'),
                    Some(c @ ('"' | '\\' | '/')) => result.push(c),
                    _ => return refuse("JSON: an escape sequence that this program does not know"),
                },
                Some(c) => result.push(c),
                None => return refuse("JSON: a string without an end"),
            }
        }
        self.rest = characters.as_str();
        Ok(result)
    }
}

/// A string as JSON.
fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{}\"", escaped.replace(char::is_control, " "))
}

// -- safetensors: eight bytes of length, a table in JSON, and the numbers ----------------------------------------------

/// A tensor in float32; one of another dtype has no numbers.
struct Tensor {
    shape: Vec<usize>,
    numbers: Option<Vec<f32>>,
}

fn read_tensors(path: &Path) -> Fallible<BTreeMap<String, Tensor>> {
    let bytes = fs::read(path)?;
    let cut = || Refused(format!("{} is not all there", path.display()));
    let length = u64::from_le_bytes(bytes.get(..8).ok_or_else(cut)?.try_into().map_err(|_| cut())?) as usize;
    let header = bytes[8..].get(..length).ok_or_else(cut)?;
    let data = &bytes[8 + length..];
    let Json::Object(rows) = Json::parse(&String::from_utf8_lossy(header))? else { return Err(cut()) };
    let mut tensors = BTreeMap::new();
    for (name, row) in rows.into_iter().filter(|(name, _)| name != "__metadata__") {
        let (shape, offsets) = (row.numbers("shape"), row.numbers("data_offsets"));
        let content = data.get(offsets[0]..offsets[1]).ok_or_else(cut)?;
        let numbers = content.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let numbers = (row.text("dtype")? == "F32").then(|| numbers.collect::<Vec<f32>>());
        if numbers.as_ref().is_some_and(|n| n.len() != shape.iter().product::<usize>()) {
            return Err(cut());
        }
        tensors.insert(name, Tensor { shape, numbers });
    }
    Ok(tensors)
}

fn write_tensors(path: &Path, maps: &BTreeMap<String, Map>) -> Fallible<()> {
    let (mut rows, mut data) = (Vec::new(), Vec::new());
    for (name, map) in maps {
        let first = data.len();
        data.extend(map.x.iter().flat_map(|n| n.to_le_bytes()));
        let shape = [map.batch, map.channels, map.height, map.width];
        let place = [first, data.len()];
        rows.push(format!("{}:{{\"dtype\":\"F32\",\"shape\":{shape:?},\"data_offsets\":{place:?}}}", quoted(name)));
    }
    let header = format!("{{{}}}", rows.join(","));
    let length = (header.len() as u64).to_le_bytes();
    write_whole(path, &[&length, header.as_bytes(), &data].concat())
}

/// Writes under another name and renames then, so that the file appears whole.
fn write_whole(path: &Path, content: &[u8]) -> Fallible<()> {
    let part = path.with_extension("part");
    fs::write(&part, content)?;
    Ok(fs::rename(part, path)?)
}

// -- maps: a batch of images or of what layers make of them, (batch, channels, height, width) --------------------------

#[derive(Clone)]
struct Map {
    batch: usize,
    channels: usize,
    height: usize,
    width: usize,
    x: Vec<f32>,
}

impl Map {
    fn new(batch: usize, channels: usize, height: usize, width: usize) -> Map {
        Map { batch, channels, height, width, x: vec![0.0; batch * channels * height * width] }
    }

    fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// The place of `n` channels of an item, from channel c on.
    fn place(&self, b: usize, c: usize, n: usize) -> std::ops::Range<usize> {
        let first = (b * self.channels + c) * self.pixels();
        first..first + n * self.pixels()
    }

    fn plane(&self, b: usize, c: usize) -> &[f32] {
        &self.x[self.place(b, c, 1)]
    }

    fn row(&self, b: usize, c: usize, y: usize) -> &[f32] {
        &self.plane(b, c)[y * self.width..(y + 1) * self.width]
    }

    /// The channels from `first` to `first + n`.
    fn part(&self, first: usize, n: usize) -> Map {
        let x = (0..self.batch).flat_map(|b| self.x[self.place(b, first, n)].iter().copied()).collect();
        Map { channels: n, x, ..*self }
    }

    /// A map of f(number).
    fn map(&self, f: impl Fn(f32) -> f32) -> Map {
        Map { x: self.x.iter().map(|&n| f(n)).collect(), ..*self }
    }
}

// -- layers: one formula each ------------------------------------------------------------------------------------------

/// A kernel; zeros `before` are above and on the left, and a linear map has weights of two axes.
struct Geometry {
    kernel: usize,
    stride: usize,
    before: usize,
    after: usize,
    axes: usize,
}
const SAME: Geometry = Geometry { kernel: 3, stride: 1, before: 1, after: 1, axes: 4 };
const DOWN: Geometry = Geometry { kernel: 3, stride: 2, before: 0, after: 1, axes: 4 };
const POINT: Geometry = Geometry { kernel: 1, stride: 1, before: 0, after: 0, axes: 4 };
const LINEAR: Geometry = Geometry { axes: 2, ..POINT };

/// Adds w · x to one row of the result, for one tap of the kernel: sum number s reads row[s · stride + tap - before].
fn add_tap(sums: &mut [f64], row: &[f32], w: f64, tap: usize, g: &Geometry) {
    for (s, sum) in sums.iter_mut().enumerate() {
        if let Some(x) = (s * g.stride + tap).checked_sub(g.before).and_then(|at| row.get(at)) {
            *sum += w * f64::from(*x);
        }
    }
}

fn conv(model: &Model, name: &str, x: &Map, out: usize, g: &Geometry) -> Fallible<Map> {
    let w = model.weight(name, "weight", &[out, x.channels, g.kernel, g.kernel][..g.axes])?;
    let bias = model.weight(name, "bias", &[out])?;
    let size = |n: usize| (n + g.before + g.after - g.kernel) / g.stride + 1;
    let mut y = Map::new(x.batch, out, size(x.height), size(x.width));
    for b in 0..y.batch {
        for o in 0..out {
            for r in 0..y.height {
                let mut sums = vec![f64::from(bias[o]); y.width];
                for i in 0..x.channels {
                    for u in 0..g.kernel {
                        let Some(from) = (r * g.stride + u).checked_sub(g.before) else { continue };
                        if from < x.height {
                            for v in 0..g.kernel {
                                let tap = w[((o * x.channels + i) * g.kernel + u) * g.kernel + v];
                                add_tap(&mut sums, x.row(b, i, from), f64::from(tap), v, g);
                            }
                        }
                    }
                }
                let first = y.place(b, o, 1).start + r * y.width;
                y.x[first..first + sums.len()].iter_mut().zip(sums).for_each(|(n, sum)| *n = sum as f32);
            }
        }
    }
    Ok(model.noted(name, y))
}

/// (x - mean) / sqrt(variance + eps) over each group of channels, with a scale and a shift per channel.
fn group_norm(model: &Model, name: &str, x: &Map) -> Fallible<Map> {
    let scale = model.weight(name, "weight", &[x.channels])?;
    let shift = model.weight(name, "bias", &[x.channels])?;
    let groups = model.config.number("norm_num_groups")?;
    let (wide, mut y) = (x.channels / groups, x.clone());
    for b in 0..x.batch {
        for g in 0..groups {
            let place = x.place(b, g * wide, wide);
            let (group, n) = (&x.x[place.clone()], place.len() as f64);
            let mean = group.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let variance = group.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
            let factor = 1.0 / (variance + EPS).sqrt();
            for (i, at) in place.enumerate() {
                let c = g * wide + i / x.pixels();
                y.x[at] = ((f64::from(x.x[at]) - mean) * factor * f64::from(scale[c]) + f64::from(shift[c])) as f32;
            }
        }
    }
    Ok(model.noted(name, y))
}

fn silu(x: &Map) -> Map {
    x.map(|n| (f64::from(n) / (1.0 + (-f64::from(n)).exp())) as f32)
}

fn add(x: &Map, y: &Map) -> Map {
    Map { x: x.x.iter().zip(&y.x).map(|(a, b)| a + b).collect(), ..*x }
}

fn norm_silu_conv(model: &Model, norm: &str, name: &str, x: &Map, out: usize) -> Fallible<Map> {
    conv(model, name, &silu(&group_norm(model, norm, x)?), out, &SAME)
}

/// x + conv2(silu(norm2(conv1(silu(norm1(x)))))), with a 1 x 1 convolution of x if the width changes.
fn resnet(model: &Model, name: &str, x: &Map, out: usize) -> Fallible<Map> {
    let h = norm_silu_conv(model, &format!("{name}.norm1"), &format!("{name}.conv1"), x, out)?;
    let h = norm_silu_conv(model, &format!("{name}.norm2"), &format!("{name}.conv2"), &h, out)?;
    if x.channels == out {
        return Ok(model.noted(name, add(x, &h)));
    }
    let x = conv(model, &format!("{name}.conv_shortcut"), x, out, &POINT)?;
    Ok(model.noted(name, add(&x, &h)))
}

/// softmax(scale · Q Kᵀ) V over all pixels, with one head.
fn attend(q: &Map, k: &Map, v: &Map) -> Map {
    let scale = 1.0 / (q.channels as f64).sqrt();
    let mut y = q.clone();
    for b in 0..q.batch {
        for i in 0..q.pixels() {
            let mut p = vec![0.0; q.pixels()];
            for c in 0..q.channels {
                add_tap(&mut p, k.plane(b, c), scale * f64::from(q.plane(b, c)[i]), 0, &POINT);
            }
            let largest = p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            p.iter_mut().for_each(|e| *e = (*e - largest).exp());
            let total: f64 = p.iter().sum();
            for c in 0..q.channels {
                let sum: f64 = p.iter().zip(v.plane(b, c)).map(|(e, &n)| e * f64::from(n)).sum();
                let at = y.place(b, c, 1).start + i;
                y.x[at] = (sum / total) as f32;
            }
        }
    }
    y
}

/// x + to_out(attend(to_q(t), to_k(t), to_v(t))) with t = norm(x).
fn attention(model: &Model, name: &str, x: &Map) -> Fallible<Map> {
    let t = group_norm(model, &format!("{name}.group_norm"), x)?;
    let linear = |part: &str, t: &Map| conv(model, &format!("{name}.{part}"), t, x.channels, &LINEAR);
    let h = attend(&linear("to_q", &t)?, &linear("to_k", &t)?, &linear("to_v", &t)?);
    Ok(model.noted(name, add(x, &linear("to_out.0", &h)?)))
}

/// Repeats every pixel in a square of four.
fn doubled(x: &Map) -> Map {
    let mut y = Map::new(x.batch, x.channels, 2 * x.height, 2 * x.width);
    for plane in 0..x.batch * x.channels {
        for i in 0..y.height {
            for j in 0..y.width {
                y.x[(plane * y.height + i) * y.width + j] = x.x[(plane * x.height + i / 2) * x.width + j / 2];
            }
        }
    }
    y
}

fn upsample(model: &Model, name: &str, x: &Map) -> Fallible<Map> {
    Ok(model.noted(name, conv(model, &format!("{name}.conv"), &doubled(x), x.channels, &SAME)?))
}

fn downsample(model: &Model, name: &str, x: &Map) -> Fallible<Map> {
    Ok(model.noted(name, conv(model, &format!("{name}.conv"), x, x.channels, &DOWN)?))
}

// -- the two halves, from the first layer to the last ------------------------------------------------------------------

fn stage(model: &Model, block: &str, kind: &str, mut x: Map, out: usize, resnets: usize) -> Fallible<Map> {
    for i in 0..resnets {
        x = resnet(model, &format!("{block}.resnets.{i}"), &x, out)?;
        if kind.starts_with("Attn") {
            x = attention(model, &format!("{block}.attentions.{i}"), &x)?;
        }
    }
    Ok(x)
}

fn middle(model: &Model, block: &str, x: Map) -> Fallible<Map> {
    let mut x = resnet(model, &format!("{block}.resnets.0"), &x, x.channels)?;
    if model.config.is_true("mid_block_add_attention") {
        x = attention(model, &format!("{block}.attentions.0"), &x)?;
    }
    resnet(model, &format!("{block}.resnets.1"), &x, x.channels)
}

fn head(model: &Model, half: &str, x: &Map, out: usize) -> Fallible<Map> {
    let x = model.noted(&format!("{half}.conv_act"), silu(&group_norm(model, &format!("{half}.conv_norm_out"), x)?));
    conv(model, &format!("{half}.conv_out"), &x, out, &SAME)
}

/// Images -> mean and log-variance, in one map.
fn encoder(model: &Model, x: &Map) -> Fallible<Map> {
    let config = &model.config;
    let (widths, types) = (config.numbers("block_out_channels"), config.texts("down_block_types"));
    let moments = 2 * config.number("latent_channels")?;
    let mut x = conv(model, "encoder.conv_in", x, widths[0], &SAME)?;
    for (level, &width) in widths.iter().enumerate() {
        let block = format!("encoder.down_blocks.{level}");
        x = stage(model, &block, types[level], x, width, config.number("layers_per_block")?)?;
        if level + 1 < widths.len() {
            x = downsample(model, &format!("{block}.downsamplers.0"), &x)?;
        }
    }
    x = middle(model, "encoder.mid_block", x)?;
    x = head(model, "encoder", &x, moments)?;
    if config.is_true("use_quant_conv") { conv(model, "quant_conv", &x, moments, &POINT) } else { Ok(x) }
}

/// Latents -> images.
fn decoder(model: &Model, x: &Map) -> Fallible<Map> {
    let config = &model.config;
    let (mut widths, types) = (config.numbers("decoder_block_out_channels"), config.texts("up_block_types"));
    if widths.is_empty() {
        widths = config.numbers("block_out_channels");
    }
    widths.reverse();
    let mut x = x.clone();
    if config.is_true("use_post_quant_conv") {
        x = conv(model, "post_quant_conv", &x, x.channels, &POINT)?;
    }
    x = conv(model, "decoder.conv_in", &x, widths[0], &SAME)?;
    x = middle(model, "decoder.mid_block", x)?;
    for (level, &width) in widths.iter().enumerate() {
        let block = format!("decoder.up_blocks.{level}");
        x = stage(model, &block, types[level], x, width, config.number("layers_per_block")? + 1)?;
        if level + 1 < widths.len() {
            x = upsample(model, &format!("{block}.upsamplers.0"), &x)?;
        }
    }
    head(model, "decoder", &x, config.number("out_channels")?)
}

type Results = BTreeMap<String, Map>;

fn encode(model: &Model, images: &Map) -> Fallible<Results> {
    let moments = encoder(model, images)?;
    let half = moments.channels / 2;
    let logvar = moments.part(half, half).map(|n| n.clamp(-30.0, 20.0));
    Ok(BTreeMap::from([("mean".into(), moments.part(0, half)), ("logvar".into(), logvar)]))
}

fn decode(model: &Model, latents: &Map) -> Fallible<Results> {
    Ok(BTreeMap::from([("sample".into(), decoder(model, latents)?)]))
}

// -- the model: a config and its weights. What this program does not do is said, and wrong weights are refused ---------

struct Model {
    config: Json,
    weights: BTreeMap<String, Tensor>,
    read: RefCell<HashSet<String>>,
    layers: Option<RefCell<Results>>,
}

impl Model {
    fn load(folder: &Path, layers: bool) -> Fallible<Model> {
        let config = Json::parse(&fs::read_to_string(folder.join("config.json"))?)?;
        let activation = config.text("act_fn")?;
        if !["silu", "swish"].contains(&activation) {
            return Err(NotSupported(format!("act_fn {activation}")));
        }
        let weights = read_tensors(&folder.join("diffusion_pytorch_model.safetensors"))?;
        let mut model = Model { config, weights, read: RefCell::default(), layers: None };
        model.require_all_and_no_others()?;
        model.layers = layers.then(RefCell::default);
        Ok(model)
    }

    fn weight(&self, layer: &str, leaf: &str, shape: &[usize]) -> Fallible<&[f32]> {
        let name = format!("{layer}.{leaf}");
        self.read.borrow_mut().insert(name.clone());
        match self.weights.get(&name) {
            Some(Tensor { shape: stored, numbers: Some(numbers) }) if stored == shape => Ok(numbers),
            Some(tensor) => refuse(format!("tensor {name} is {:?}: expected float32 {shape:?}", tensor.shape)),
            None => refuse(format!("tensor {name} is missing")),
        }
    }

    /// Runs both halves on a batch of no images: that reads every weight, and what is not read is none of ours.
    fn require_all_and_no_others(&self) -> Fallible<()> {
        encoder(self, &Map::new(0, self.config.number("in_channels")?, 64, 64))?;
        decoder(self, &Map::new(0, self.config.number("latent_channels")?, 2, 2))?;
        let of_latents = |name: &str| name.starts_with("bn.") && !self.config.numbers("patch_size").is_empty();
        match self.weights.keys().find(|name| !self.read.borrow().contains(*name) && !of_latents(name)) {
            Some(name) => refuse(format!("tensor {name} is unexpected")),
            None => Ok(()),
        }
    }

    /// Notes the result of a layer, if the request asks for them.
    fn noted(&self, layer: &str, y: Map) -> Map {
        if let Some(layers) = &self.layers {
            layers.borrow_mut().insert(format!("layer.{layer}"), y.clone());
        }
        y
    }
}

// -- the protocol: a folder with a request in, a folder with answers out -----------------------------------------------

fn read_input(path: &Path, name: &str) -> Fallible<Map> {
    match read_tensors(path)?.remove(name) {
        Some(Tensor { shape, numbers: Some(x) }) if shape.len() == 4 => {
            Ok(Map { batch: shape[0], channels: shape[1], height: shape[2], width: shape[3], x })
        }
        _ => refuse(format!("{name}: expected four axes of float32")),
    }
}

fn compute(row: &Json, request: &Path) -> Fallible<Results> {
    let (run, name): (fn(&Model, &Map) -> Fallible<Results>, _) = match row.text("call")? {
        "encode" => (encode, "images"),
        "decode" => (decode, "latents"),
        call => return Err(NotSupported(format!("the call {call}"))),
    };
    let dtype = row.text("dtype")?;
    if dtype != "float32" {
        return Err(NotSupported(format!("{dtype}: this program computes in float32")));
    }
    let model = Model::load(&request.join(row.text("model")?), row.is_true("layers"))?;
    let mut results = run(&model, &read_input(&request.join(row.text("input")?), name)?)?;
    results.extend(model.layers.into_iter().flat_map(RefCell::into_inner));
    Ok(results)
}

fn answer_case(row: &Json, request: &Path, folder: &Path) -> Fallible<()> {
    let id = row.text("id")?;
    let words = |content: String| write_whole(&folder.join(format!("{id}.json")), content.as_bytes());
    if row.text("call")? == "describe" {
        return words("{\"name\": \"vae.rs\", \"dtypes\": [\"float32\"]}".into());
    }
    match compute(row, request) {
        Ok(results) => write_tensors(&folder.join(format!("{id}.safetensors")), &results),
        Err(NotSupported(reason)) => words(format!("{{\"not_supported\": {}}}", quoted(&reason))),
        Err(Refused(message)) => words(format!("{{\"error\": {}}}", quoted(&message))),
    }
}

fn answer_request(request: &Path, folder: &Path) -> Fallible<()> {
    let content = Json::parse(&fs::read_to_string(request.join("request.json"))?)?;
    if content.text("protocol")? != PROTOCOL {
        return refuse(format!("this program knows {PROTOCOL} only"));
    }
    content.list("cases").iter().try_for_each(|row| answer_case(row, request, folder))
}

/// Each line of stdin names the folders of a request; a line on stdout says that it is answered.
fn serve() -> Fallible<()> {
    for line in io::stdin().lines() {
        let folders = Json::parse(&line?)?;
        answer_request(Path::new(folders.text("request")?), Path::new(folders.text("answer")?))?;
        println!("{{\"done\": true}}");
    }
    Ok(())
}

fn main() {
    let folders: Vec<String> = env::args().skip(1).collect();
    let result = match &folders[..] {
        [request, answer] => answer_request(Path::new(request), Path::new(answer)),
        _ => serve(),
    };
    if let Err(NotSupported(message) | Refused(message)) = result {
        eprintln!("{message}");
        process::exit(1);
    }
}
