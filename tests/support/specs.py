"""Specs for tests of the edge."""

from lighten import v1 as pb


def onnx_spec(root: str = "file:///data") -> pb.JobSpec:
    """A spec that passes every check, with nothing that has a default."""
    return pb.JobSpec(
        model=pb.ModelSource(
            artifact=pb.ObjectRef(uri=f"{root}/model.onnx"), format=pb.MODEL_FORMAT_ONNX
        ),
        calibration=pb.Dataset(
            data=pb.ObjectRef(uri=f"{root}/calibration.npz"), format=pb.DATASET_FORMAT_NPZ
        ),
        plan=pb.Plan(steps=pb.Steps(steps=[pb.Step(calibrate=pb.Calibrate())])),
    )


def torch_spec(root: str = "file:///data") -> pb.JobSpec:
    """A spec with an architecture, images and every step."""
    spec = onnx_spec(root)
    spec.model.CopyFrom(
        pb.ModelSource(
            artifact=pb.ObjectRef(uri=f"{root}/model.safetensors"),
            format=pb.MODEL_FORMAT_SAFETENSORS,
            architecture=pb.Architecture(
                library=pb.ARCHITECTURE_LIBRARY_TORCHVISION, name="mobilenet_v2"
            ),
            inputs=[pb.InputSpec(name="input", shape=[3, 224, 224])],
        )
    )
    spec.calibration.CopyFrom(
        pb.Dataset(
            data=pb.ObjectRef(uri=f"{root}/images/"),
            format=pb.DATASET_FORMAT_IMAGE_FOLDER,
            preprocessing=pb.Preprocessing(
                resize=pb.Resize(shorter_side=256),
                center_crop=pb.CenterCrop(height=224, width=224),
                mean=[0.5, 0.5, 0.5],
            ),
        )
    )
    del spec.plan.steps.steps[:]
    spec.plan.steps.steps.extend(
        [
            pb.Step(fold_batch_norms=pb.FoldBatchNorms()),
            pb.Step(cross_layer_equalization=pb.CrossLayerEqualization()),
            pb.Step(calibrate=pb.Calibrate()),
        ]
    )
    return spec
