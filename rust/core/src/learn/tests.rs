use super::iteration_time_fit::IterationTimeFit;
use crate::cost::{AttentionCosts, BatchShape, IterationTime, MeasuredLaw, TokenStep};

/// Uniform numbers in [0, 1), the same on every machine.
struct Draws(u64);

impl Draws {
    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Nearly normal, of mean 0 and deviation 1.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
}

/// A server: decodes come and go, and in some iterations prompts of all lengths are computed beside them.
struct Server {
    draws: Draws,
    decodes: f64,
    context: f64,
    most_tokens: u64,
}

impl Server {
    fn new(seed: u64, most_tokens: u64) -> Self {
        Self { draws: Draws(seed * 2 + 1), decodes: 40.0, context: 600.0, most_tokens }
    }

    fn step(&mut self) -> BatchShape {
        self.decodes = (self.decodes + 3.0 * self.draws.normal()).clamp(1.0, 200.0);
        self.context = (self.context + 20.0 * self.draws.normal()).clamp(100.0, 2000.0);
        let decodes = self.decodes as u64;
        let mut shape = BatchShape { decodes, decode_kv: decodes * self.context as u64, ..BatchShape::default() };
        if self.draws.uniform() < 0.4 {
            let octaves = self.draws.uniform() * 11.0;
            let tokens = (libm::exp2(octaves) as u64).clamp(1, self.most_tokens - decodes);
            let before = if self.draws.uniform() < 0.2 { 1024 } else { 0 };
            shape.add_prefill(tokens, before);
        }
        shape
    }
}

fn moe() -> IterationTime {
    // Bound by memory: a few tokens activate all experts, and beyond that tokens are nearly free.
    let step = |up_to, base_ns, per_token_ns| TokenStep { up_to, base_ns, per_token_ns };
    let steps = vec![step(16, 4e6, 250e3), step(128, 7.6e6, 25e3), step(1024, 10.2e6, 4.5e3), step(8192, 5.6e6, 9e3)];
    let attention =
        AttentionCosts { per_decode_kv_ns: 18.0, per_prefill_attention_ns: 0.4, ..AttentionCosts::default() };
    IterationTime::Measured(MeasuredLaw::new(1, steps, attention).unwrap())
}

fn laws() -> [(&'static str, IterationTime); 4] {
    let smooth = MeasuredLaw::from_points(&[(1, 8e6), (200, 8.2e6), (2048, 60e6)], AttentionCosts::default()).unwrap();
    [
        ("a100", IterationTime::A100),
        ("linear", IterationTime::linear(0.01, 2e-7).unwrap()),
        ("moe", moe()),
        ("smooth", IterationTime::Measured(smooth)),
    ]
}

/// Mean and largest relative error of the fitted law on further iterations.
fn errors(fit: &IterationTimeFit, truth: &IterationTime, server: &mut Server) -> (f64, f64) {
    let law = fit.law().unwrap();
    let each: Vec<f64> = (0..2000)
        .map(|_| server.step())
        .map(|shape| (law.seconds(&shape) / truth.seconds(&shape) - 1.0).abs())
        .collect();
    (each.iter().sum::<f64>() / 2000.0, each.iter().copied().fold(0.0, f64::max))
}

#[test]
fn try_out() {
    for (name, truth) in laws() {
        for jitter in [0.0, 0.1] {
            for n in [320, 640, 2000, 6000] {
                let mut server = Server::new(7, 2048);
                let mut noise = Draws(99);
                let mut fit = IterationTimeFit::default();
                for _ in 0..n {
                    let shape = server.step();
                    let ns = truth.nanos(&shape) as f64 * (1.0 + jitter * noise.normal());
                    fit.observe(&shape, ns as u64);
                }
                let started = std::time::Instant::now();
                for _ in 0..64 {
                    let shape = server.step();
                    let ns = truth.nanos(&shape) as f64 * (1.0 + jitter * noise.normal());
                    fit.observe(&shape, ns as u64);
                }
                let took = started.elapsed();
                let (mean, most) = errors(&fit, &truth, &mut server);
                println!(
                    "{name} {jitter} {n}: {mean:.4} {most:.4}; error {:?} trusted {} version {} {took:?}",
                    fit.error(),
                    fit.is_trusted(),
                    fit.version()
                );
                if n == 6000 {
                    println!("{}", serde_json::to_string(fit.law().unwrap()).unwrap());
                }
            }
        }
    }
}
