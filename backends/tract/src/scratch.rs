#![allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used, clippy::print_stdout)]
use crate::{forms, graph, operators, own, sound};
use std::collections::HashMap;
use std::time::Instant;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
pub fn go(path: &str) {
    let bytes = std::fs::read(path).unwrap();
    let framework = operators::framework();
    let mut proto = framework.proto_model_for_read(&mut &*bytes).unwrap();
    forms::stabilise(&mut proto).unwrap();
    proto.graph.iter_mut().for_each(graph::name_nodes);
    let template = framework.model_for_proto_model(&proto).unwrap();
    let t = |s: &str, i: Instant| println!("{s}: {:.1} ms", i.elapsed().as_secs_f64() * 1e3);
    let i = Instant::now();
    let m = template.clone();
    let mut syms: HashMap<String, Symbol> = HashMap::new();
    let g = proto.graph.as_ref().unwrap();
    let names: Vec<String> =
        m.input_outlets().unwrap().iter().map(|o| m.node(o.node).name.clone()).collect();
    let mut m2 = m.clone();
    for (ix, name) in names.iter().enumerate() {
        let v = g.input.iter().find(|v| &v.name == name).unwrap();
        let Some(tract_onnx::pb::type_proto::Value::TensorType(tt)) =
            v.r#type.as_ref().unwrap().value.as_ref()
        else {
            panic!()
        };
        let dt = if tt.elem_type == 7 { i64::datum_type() } else { f32::datum_type() };
        let shape: TVec<TDim> = tt
            .shape
            .as_ref()
            .unwrap()
            .dim
            .iter()
            .map(|d| match d.value.as_ref().unwrap() {
                tract_onnx::pb::tensor_shape_proto::dimension::Value::DimValue(v) => TDim::Val(*v),
                tract_onnx::pb::tensor_shape_proto::dimension::Value::DimParam(p) => {
                    syms.entry(p.clone()).or_insert_with(|| m.symbols.sym(p)).clone().into()
                }
            })
            .collect();
        m2.set_input_fact(ix, InferenceFact::dt_shape(dt, shape)).unwrap();
    }
    t("clone+facts", i);
    let i = Instant::now();
    let typed = m2.into_typed();
    t("symbolic typed", i);
    let typed = match typed {
        Ok(t) => t,
        Err(e) => {
            println!("TYPED FAILED {e:?}");
            return;
        }
    };
    let i = Instant::now();
    let dec = sound::declutter(typed).unwrap();
    t("symbolic declutter", i);
    println!("nodes {}", dec.nodes.len());
    if std::env::var("DUMP").is_ok() {
        for n in &dec.nodes {
            println!(
                "{} {} {:?} <- {:?} => {:?}",
                n.id,
                n.op.name(),
                n.name,
                n.inputs,
                n.outputs.iter().map(|o| o.fact.shape.clone()).collect::<Vec<_>>()
            );
        }
    }
    let i = Instant::now();
    let opt = sound::optimize(dec.clone());
    t("symbolic optimize", i);
    match opt {
        Ok(opt) => {
            let i = Instant::now();
            let p = TypedSimplePlan::new(opt);
            t("plan", i);
            println!("{:?}", p.is_ok());
            run("symbolic", &p.unwrap(), &dec, &syms, 64);
        }
        Err(e) => println!("OPT FAILED {e:?}"),
    }
    {
        let i = Instant::now();
        let r = own::rewrite(&dec).unwrap().unwrap();
        t("symbolic own rewrite", i);
        let i = Instant::now();
        let o = sound::optimize(r).unwrap();
        t("symbolic own optimize", i);
        if std::env::var("DUMP").is_ok() {
            for n in &o.nodes {
                println!(
                    "{} {} {:?} <- {:?} => {:?}",
                    n.id,
                    n.op.name(),
                    n.name,
                    n.inputs,
                    n.outputs.iter().map(|o| o.fact.shape.clone()).collect::<Vec<_>>()
                );
            }
        }
        let p = TypedSimplePlan::new(o).unwrap();
        for l in [8, 17, 64, 128, 64] {
            run("symbolic own", &p, &dec, &syms, l);
        }
    }
    for len in [64i64, 65, 66] {
        let i = Instant::now();
        let subs: HashMap<Symbol, TDim> = syms
            .iter()
            .map(|(k, s)| (s.clone(), if k == "batch" { TDim::Val(1) } else { TDim::Val(len) }))
            .collect();
        let conc = dec.set_symbols(&subs).unwrap();
        t("  set_symbols", i);
        let i = Instant::now();
        let conc2 = sound::declutter(conc.clone()).unwrap();
        t("  declutter again", i);
        let i = Instant::now();
        for (w, conc) in [("raw", conc), ("decl", conc2)] {
            println!("{w} nodes {}", conc.nodes.len());
            let i = Instant::now();
            let r = own::rewrite(&conc).unwrap().unwrap();
            t("  own rewrite", i);
            let i = Instant::now();
            let o = sound::optimize(r).unwrap();
            t("  optimize", i);
            let i = Instant::now();
            let p = TypedSimplePlan::new(o).unwrap();
            t("  plan", i);
            run("concrete own", &p, &conc, &syms, len as usize);
        }
        let i = Instant::now();
        let o = sound::optimize(dec.set_symbols(&subs).unwrap()).unwrap();
        t("  optimize plain", i);
        let p = TypedSimplePlan::new(o).unwrap();
        run("concrete plain", &p, &dec, &syms, len as usize);
    }
}
fn run(
    what: &str,
    p: &Arc<TypedSimplePlan>,
    dec: &TypedModel,
    syms: &HashMap<String, Symbol>,
    len: usize,
) {
    let ins: TVec<TValue> = dec
        .input_outlets()
        .unwrap()
        .iter()
        .map(|o| {
            let f = dec.outlet_fact(*o).unwrap();
            let mut sv = SymbolValues::default();
            for (k, s) in syms {
                sv.set(s, if k == "batch" { 1 } else { len as i64 });
            }
            let shape: Vec<usize> =
                f.shape.iter().map(|d| d.eval_to_i64(&sv).unwrap() as usize).collect();
            let t = if f.datum_type == i64::datum_type() {
                Tensor::from_shape(&shape, &vec![1i64; shape.iter().product()]).unwrap()
            } else {
                Tensor::from_shape(&shape, &vec![0.3f32; shape.iter().product()]).unwrap()
            };
            t.into_tvalue()
        })
        .collect();
    let mut best = f64::MAX;
    for _ in 0..12 {
        let i = Instant::now();
        let r = p.spawn().unwrap().run(ins.clone());
        if let Err(e) = r {
            println!("RUN {what} {e:?}");
            return;
        }
        best = best.min(i.elapsed().as_secs_f64());
    }
    println!("RUN {what} len {len}: {:.2} ms", best * 1e3);
}
