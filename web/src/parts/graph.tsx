// A small line of the last values of something.

const WIDTH = 120;
const HEIGHT = 24;

/** The number at the beginning of a value such as "12.5 %" or "3.1/16 GiB". */
export function numberIn(value: string): number | null {
  const found = /^\s*(-?\d+(?:\.\d+)?)/.exec(value);
  return found ? Number(found[1]) : null;
}

export function Graph({ values, label }: { values: number[]; label: string }) {
  if (values.length < 2) return null;
  const low = Math.min(...values);
  const span = Math.max(...values) - low || 1;
  const points = values.map(
    (value, index) =>
      `${((index / (values.length - 1)) * WIDTH).toFixed(1)},${(HEIGHT - 2 - ((value - low) / span) * (HEIGHT - 4)).toFixed(1)}`,
  );
  return (
    <svg class="graph" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={label} preserveAspectRatio="none">
      <polyline points={points.join(" ")} />
    </svg>
  );
}
