// Frame and skeletons on the canvas.

const VISIBLE = 0.3; // the SDK's: less sure joints are not drawn
const COLOURS = { left: "#35c2ff", right: "#ff9f1c", middle: "#b8f15a" };

/** `limbs` are pairs of joints, `sides` pairs of (left, right) joints. */
export function draw(context, frame, people, { limbs, sides }) {
  const { canvas } = context;
  [canvas.width, canvas.height] = [frame.width, frame.height];
  context.drawImage(frame, 0, 0);
  const sideOf = new Map(sides.flatMap(([left, right]) => [[left, "left"], [right, "right"]]));
  context.lineCap = "round";
  for (const { box, joints } of people) {
    // as thick as the person is tall, so that a crowd stays readable
    const width = Math.min(Math.max((box[3] - box[1]) / 60, 1.5), 8);
    const seen = (joint) => joints[joint][2] >= VISIBLE;
    for (const [a, b] of limbs) {
      if (!seen(a) || !seen(b)) continue;
      const side = sideOf.get(a) === sideOf.get(b) ? sideOf.get(a) : undefined;
      context.strokeStyle = COLOURS[side ?? "middle"];
      context.lineWidth = width;
      context.beginPath();
      context.moveTo(joints[a][0], joints[a][1]);
      context.lineTo(joints[b][0], joints[b][1]);
      context.stroke();
    }
    joints.forEach(([x, y], joint) => {
      if (!seen(joint)) return;
      context.fillStyle = "#ffffff";
      context.beginPath();
      context.arc(x, y, width * 0.8, 0, 2 * Math.PI);
      context.fill();
    });
  }
}
