//! Text tables: a header, rows, columns as wide as their widest cell.

/// Blanks between two columns.
const GAP: usize = 2;

/// A table in the making.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column heads.
    pub(crate) fn new<const N: usize>(heads: [&str; N]) -> Self {
        Self { rows: vec![heads.map(str::to_owned).to_vec()] }
    }

    /// A table without heads, for names and values.
    pub(crate) fn headless() -> Self {
        Self { rows: Vec::new() }
    }

    /// Adds a row. An empty cell shows as `-`.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| if cell.is_empty() { "-".to_owned() } else { cell }).to_vec());
    }

    /// The table as text; each line ends with a line feed and never with a blank.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut widths = vec![0; columns];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (width, cell) in widths.iter().zip(row) {
                let padding = width - cell.chars().count() + GAP;
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', padding));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_lines_end_clean() {
        let mut table = Table::new(["NAME", "PHASE", "NOTE"]);
        table.row(["a".to_owned(), "Granted".to_owned(), String::new()]);
        table.row(["longer-name".to_owned(), "x".to_owned(), "grüße".to_owned()]);
        let expected = "\
NAME         PHASE    NOTE
a            Granted  -
longer-name  x        grüße
";
        assert_eq!(table.render(), expected);
    }

    #[test]
    fn an_empty_table_is_its_heads() {
        assert_eq!(Table::new(["A", "B"]).render(), "A  B\n");
        assert_eq!(Table::headless().render(), "");
    }
}
