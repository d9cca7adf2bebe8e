//! Scratch speed check.
use std::ops::ControlFlow;
use wait_core::Config;
use wait_core::cost::IterationTime;
fn main() {
    let policy = std::env::args().nth(1).unwrap();
    let rate: f64 = std::env::args().nth(2).unwrap().parse().unwrap();
    let n: usize = std::env::args().nth(3).unwrap().parse().unwrap();
    let ds: wait_sim::Dataset = serde_json::from_str(r#"{"arrivals":{"kind":"poisson"},"phases":[{"start":0.0,"components":[{"name":"a","weight":1.0,"prompt":{"kind":"constant","value":512},"output":{"kind":"constant","value":1000}}]}]}"#).unwrap();
    let m =
        serde_json::json!({"policy": policy, "kv_blocks": 8448, "types": [{"prompt":512,"output":1000,"rate":rate}]});
    let config = Config::from_map(m.as_object().unwrap().clone()).unwrap();
    let arrivals = ds.sample(n, rate, 1).unwrap();
    let setup = wait_sim::Setup {
        config,
        law: IterationTime::A100,
        lengths: wait_sim::Lengths::Known,
        typed: false,
        max_tokens: None,
        max_concurrency: None,
        typed: false,
        overhead_ns: 0,
    };
    let t = std::time::Instant::now();
    let run = wait_sim::run(&setup, &arrivals, |_| ControlFlow::Continue(())).unwrap();
    let el = t.elapsed().as_secs_f64();
    for (k, v) in wait_sim::Summary::new(&run, None).items() {
        println!("{k} {v}");
    }
    println!(
        "peak {} of {} preempt {} recomputed {}",
        run.peak_blocks, run.kv_blocks, run.stats.preemptions, run.stats.recomputed_tokens
    );
    println!(
        "iters {} {:.0} ns/iter; {:.0}M token-steps/s",
        run.iterations,
        el * 1e9 / run.iterations as f64,
        (run.decode_tokens + run.prefill_tokens) as f64 / el / 1e6
    );
}
