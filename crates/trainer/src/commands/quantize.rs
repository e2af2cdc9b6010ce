use super::model_folder::Target;
use crate::{
    base_record::BaseRecord,
    cli::{QuantArg, QuantizeArgs, Switch},
    console::{self, mib, say},
    failure::user_error,
    load, places,
    plan::{Asked, Untrained, compared},
    quantized_checkpoint::QuantizedWriter,
};
use halfbyte_frozen::{Format, FrozenMatrix};
use halfbyte_matmul as matmul;
use halfbyte_models::{Loading, ModelFolder};
use halfbyte_ops::{Refusal, WeightFormat};
use halfbyte_tensor::{DType, Device, Tensor};
use serde_json::json;
use std::{cell::RefCell, io::Write, path::Path, sync::Arc};

/// What is refused where memory is short.
const WHAT: &str = "this quantising";

/// What storing one matrix in few bits cost.
struct Cost {
    path: String,
    parameters: usize,
    bytes: usize,
    /// Root of the mean square of the error, over that of the weight.
    relative_error: f64,
    largest_error: f32,
}

/// `halfbyte quantize`: the error of every matrix, and on request a bitsandbytes checkpoint.
pub(crate) fn quantize(args: &QuantizeArgs) -> anyhow::Result<()> {
    if args.quant == QuantArg::None {
        return Err(user_error("--quant none stores nothing in fewer bits; choose nf4, fp4, int4 or int8"));
    }
    if args.output.is_some() && args.quant == QuantArg::Int4 {
        return Err(user_error(
            "--quant int4 has no place in a bitsandbytes checkpoint; leave --output out for the report alone, or use nf4, fp4 or int8",
        ));
    }
    let format = args.quant.format(args.double_quant == Switch::On, args.block_size);
    let dir = places::model(&args.model)?.path;
    let base = load::open(&dir, &[])?;
    if let Some(stored) = BaseRecord::stored(&base.folder)? {
        return Err(user_error(format!(
            "{}: is quantised already, as {stored}; quantising it again would add error to error: take the original weights",
            args.model.display()
        )));
    }
    let planned = Untrained { folder: &base.folder, format, adapters: Vec::new(), compute: DType::F32 };
    let others = [("leaving --output out, for the report alone,", planned.clone(), Asked::Codes { written: false })];
    let asked = Asked::Codes { written: args.output.is_some() };
    let plan = planned.fits(&Device::Cpu, (WHAT, &asked), 0, if args.output.is_some() { &others } else { &[] })?;
    let costs = match &args.output {
        None => measure(&base.folder, format, None)?,
        Some(output) => {
            let mut costs = Vec::new();
            let target = Target { output, overwrite: args.overwrite, sources: &[&dir] };
            target.write(|draft| {
                costs = measure(&base.folder, format, Some(draft))?;
                Ok(())
            })?;
            costs
        }
    };
    compared(WHAT, &plan);
    report(args, &costs)
}

/// Stores matrices in a format and takes note of what that costs. The model gets none of them, so that there is
/// one at a time.
struct Measured {
    format: Format,
    writer: RefCell<Option<QuantizedWriter>>,
    costs: RefCell<Vec<Cost>>,
}

impl WeightFormat for Measured {
    fn freeze(&self, path: &str, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>, Refusal> {
        let matrix = self.format.freeze(weight.clone())?;
        self.costs.borrow_mut().push(cost(path, &weight, matrix.as_ref())?);
        let dims = matrix.dims();
        drop(matrix);
        if let Some(writer) = self.writer.borrow_mut().as_mut() {
            writer.matrix(path, &weight)?;
        }
        Ok(Arc::new(LetGo { dims }))
    }

    fn keep(&self, path: &str, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>, Refusal> {
        if let Some(writer) = self.writer.borrow_mut().as_mut() {
            writer.dense(&format!("{path}.weight"), &weight);
        }
        Ok(Arc::new(LetGo { dims: (weight.rows(), weight.cols()) }))
    }
}

/// A matrix that was measured and perhaps written down, and is gone: nobody multiplies with it.
#[derive(Debug)]
struct LetGo {
    dims: (usize, usize),
}

impl FrozenMatrix for LetGo {
    fn dims(&self) -> (usize, usize) {
        self.dims
    }

    fn source<'a>(&'a self) -> Box<dyn matmul::Source + 'a> {
        Box::new(matmul::Dense::new(0, self.dims.1, &[] as &[f32]))
    }

    fn bytes(&self) -> usize {
        0
    }

    fn format(&self) -> String {
        "let go".into()
    }
}

/// Quantises one matrix at a time; `draft` is the folder to write, if one is wanted.
fn measure(folder: &ModelFolder, format: Format, draft: Option<&Path>) -> anyhow::Result<Vec<Cost>> {
    let writer = RefCell::new(draft.map(|to| QuantizedWriter::new(folder, to, format)));
    let measured = Measured { format, writer, costs: RefCell::default() };
    let bar = console::byte_bar(folder.bytes(), "quantising");
    let loading = Loading::Frozen { format: &measured, prepare: None };
    let model = folder.load(loading, &Device::Cpu, &mut |bytes| bar.inc(bytes as u64))?;
    bar.finish_and_clear();
    if let Some(writer) = measured.writer.into_inner() {
        writer.finish(model.as_ref())?;
    }
    Ok(measured.costs.into_inner())
}

fn cost(path: &str, weight: &Tensor, matrix: &dyn FrozenMatrix) -> Result<Cost, Refusal> {
    let (out, inner) = matrix.dims();
    let original = Format::DENSE.freeze(weight.clone())?;
    let (original, source) = (original.source(), matrix.source());
    let (mut wanted, mut row) = (vec![0.0; inner], vec![0.0; inner]);
    let (mut error, mut power, mut largest) = (0.0f64, 0.0f64, 0.0f32);
    for i in 0..out {
        original.read_f32(i, 0, &mut wanted);
        source.read_f32(i, 0, &mut row);
        for (got, wanted) in row.iter().zip(&wanted) {
            error += f64::from(got - wanted).powi(2);
            power += f64::from(*wanted).powi(2);
            largest = largest.max((got - wanted).abs());
        }
    }
    let relative_error = if power > 0.0 { (error / power).sqrt() } else { 0.0 };
    Ok(Cost {
        path: path.to_owned(),
        parameters: out * inner,
        bytes: matrix.bytes(),
        relative_error,
        largest_error: largest,
    })
}

fn report(args: &QuantizeArgs, costs: &[Cost]) -> anyhow::Result<()> {
    let (parameters, bytes) = costs.iter().fold((0, 0), |sum, it| (sum.0 + it.parameters, sum.1 + it.bytes));
    let bits = 8.0 * bytes as f64 / parameters.max(1) as f64;
    let mut out = std::io::stdout().lock();
    if args.json {
        let matrices: Vec<_> = costs
            .iter()
            .map(|it| json!({ "path": it.path, "parameters": it.parameters, "bytes": it.bytes, "relative_error": it.relative_error, "largest_error": it.largest_error }))
            .collect();
        writeln!(
            out,
            "{}",
            json!({ "matrices": matrices, "parameters": parameters, "bytes": bytes, "bits_per_parameter": bits })
        )?;
    } else {
        for it in costs {
            writeln!(
                out,
                "{:<44} {:>12}  relative error {:.4}, largest {:.4}",
                it.path,
                mib(it.bytes),
                it.relative_error,
                it.largest_error
            )?;
        }
        writeln!(out, "{parameters} parameters in {}: {bits:.3} bits a parameter", mib(bytes))?;
    }
    if let Some(output) = &args.output {
        say(&format!("quantised model in {}", output.display()));
    }
    Ok(())
}
