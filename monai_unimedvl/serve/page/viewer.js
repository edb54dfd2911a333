// SPDX-License-Identifier: Apache-2.0
// The image on the screen: NiiVue with one plane at a time, a slice number, and one mask over it.
"use strict";

const AXES = { sagittal: 0, coronal: 1, axial: 2 };
const LETTERS = ["R", "A", "S"];

class Viewer {
  constructor(canvas) {
    this.plane = "axial";
    this.study = null;
    this.moved = () => {};
    this.nv = new niivue.Niivue({
      backColor: [0, 0, 0, 1],
      crosshairWidth: 0,
      dragMode: niivue.DRAG_MODE.windowing,
      fontColor: [0.72, 0.8, 0.86, 1],
      isNearestInterpolation: false,
      isRadiologicalConvention: true,
      isOrientationTextVisible: true,
      isResizeCanvas: true,
      loadingText: "",
      logLevel: "error",
      show3Dcrosshair: false,
    });
    this.ready = this.nv.attachToCanvas(canvas, false);
    this.nv.onLocationChange = () => this.moved();
  }

  // Show a study of the server: its NIfTI bytes.
  async open(study, bytes) {
    await this.ready;
    this.clear();
    this.study = study;
    const [low, high] = study.window ?? [NaN, NaN];
    const image = await niivue.NVImage.new(bytes, "image.nii", "gray", 1, null, low, high);
    this.window = [image.cal_min, image.cal_max];
    this.nv.opts.isOrientationTextVisible = study.kind === "volume";
    this.nv.addVolume(image);
    this.turn("axial");
    this.reset();
  }

  clear() {
    while (this.nv.volumes.length) this.nv.removeVolumeByIndex(this.nv.volumes.length - 1);
    this.study = null;
  }

  turn(plane) {
    this.plane = plane;
    const kinds = { axial: this.nv.sliceTypeAxial, coronal: this.nv.sliceTypeCoronal, sagittal: this.nv.sliceTypeSagittal };
    this.nv.setSliceType(kinds[plane]);
    this.moved();
  }

  // Zoom, place and window as at the start.
  reset() {
    const image = this.nv.volumes[0];
    if (!image) return;
    this.nv.scene.pan2Dxyzmm = [0, 0, 0, 1];
    this.nv.scene.crosshairPos = [0.5, 0.5, 0.5];
    this.index = Math.floor(this.count / 2);
    if (image.cal_min === this.window[0] && image.cal_max === this.window[1]) return;
    [image.cal_min, image.cal_max] = this.window;
    this.nv.updateGLVolume(); // takes a while, so only when somebody has changed the window
  }

  get axis() { return AXES[this.plane]; }
  get count() { return this.nv.volumes[0]?.dimsRAS[this.axis + 1] ?? 0; }
  get index() { return Math.min(Math.floor(this.nv.scene.crosshairPos[this.axis] * this.count), this.count - 1); }

  set index(index) {
    const wanted = Math.min(Math.max(index, 0), this.count - 1);
    const place = [...this.nv.scene.crosshairPos];
    place[this.axis] = (wanted + 0.5) / this.count;
    this.nv.scene.crosshairPos = place;
    this.nv.drawScene();
    this.moved();
  }

  get mm() {
    const place = [...this.nv.scene.crosshairPos];
    place[this.axis] = (this.index + 0.5) / this.count; // the middle of the slice, wherever in it the cursor is
    return Array.from(this.nv.frac2mm(place)).slice(0, 3).map(Number);
  }

  goto(plane, mm) {
    this.turn(plane);
    this.nv.scene.crosshairPos = this.nv.mm2frac(mm);
    this.nv.drawScene();
    this.moved();
  }

  // In words: "94 of 189 · S +20.0 mm".
  get words() {
    const number = `${this.index + 1} of ${this.count}`;
    if (this.study?.kind !== "volume") return number;
    const mm = this.mm[this.axis];
    return `${number} · ${LETTERS[this.axis]} ${mm.toFixed(1) < 0 ? "−" : "+"}${Math.abs(mm).toFixed(1)} mm`;
  }

  // Lay a label map over the image.
  async mask(bytes, legend, opacity) {
    this.unmask();
    const mask = await niivue.NVImage.new(bytes, "mask.nii.gz", "gray", opacity);
    const top = Math.max(...legend.map((one) => one.label));
    const colours = Array.from({ length: top + 1 }, (_, n) => legend.find((one) => one.label === n)?.colour ?? [0, 0, 0]);
    mask.setColormapLabel({
      R: colours.map((c) => c[0]), G: colours.map((c) => c[1]), B: colours.map((c) => c[2]),
      A: colours.map((_, n) => (n && legend.some((one) => one.label === n) ? 255 : 0)),
      I: colours.map((_, n) => n),
      labels: colours.map((_, n) => legend.find((one) => one.label === n)?.name ?? ""),
    });
    this.nv.addVolume(mask);
  }

  unmask() {
    while (this.nv.volumes.length > 1) this.nv.removeVolumeByIndex(1);
  }

  set opacity(value) {
    if (this.nv.volumes.length > 1 && this.nv.volumes[1].opacity !== value) this.nv.setOpacity(1, value);
  }
}
